"""The bundled profiles, and the reader of profiles.

A profile has layers; a later layer overrides an earlier one: the defaults in `config`, a YAML file (a
bundled profile or a path), the environment, the command line. `load_profile` returns the model and, for
every setting, the layer of its value.
"""

from __future__ import annotations

import difflib
import os
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from ..config import RENAMED_SETTINGS, ConfigError, Profile, flatten

PROFILES = Path(__file__).parent
PROFILE_VARIABLE = "BANANAGRAMS_PROFILE"
STORE_VARIABLE = "BANANAGRAMS_STORE"
SET_VARIABLE = "BANANAGRAMS_SET"
TRACKING_VARIABLE = "MLFLOW_TRACKING_URI"


@dataclass(frozen=True)
class LoadedProfile:
    """A profile and, for each setting's dotted path, the layer of its value."""

    profile: Profile
    name: str
    sources: Mapping[str, str]


def load_profile(name: str | None = None, overrides: Mapping[str, Any] | None = None) -> LoadedProfile:
    """Read a profile from the defaults, the file, the environment and `overrides`, in this order.

    `name` is a bundled profile's name or a YAML file's path, by default BANANAGRAMS_PROFILE, else `demo`.
    `overrides` maps a setting's path (`mask.blur_kernel_px`) to its value. Raises ConfigError.
    """
    name = name or os.environ.get(PROFILE_VARIABLE) or "demo"
    path = _profile_path(name)
    merged: dict[str, Any] = {}
    sources: dict[str, str] = {}
    _merge(merged, sources, _read_yaml(path), str(path) if path.parent != PROFILES else f"profile {name}")
    for key, value in _environment_settings():
        _merge(merged, sources, _nested(key, value), f"environment {SET_VARIABLE}")
    if store := os.environ.get(STORE_VARIABLE):
        _merge(merged, sources, _nested("store.url", store), f"environment {STORE_VARIABLE}")
    for key, value in (overrides or {}).items():
        _merge(merged, sources, _nested(key, value), "command line")
    return LoadedProfile(validate(merged, origin=name), path.stem, sources)


def validate(content: Mapping[str, Any], origin: str = "profile") -> Profile:
    """Validate plain data and return the profile. Raises ConfigError with the path of every invalid key."""
    try:
        return Profile.model_validate(_tuples(content))
    except ValidationError as error:
        lines = [_explain(Profile, detail) for detail in error.errors()]
        raise ConfigError(f"{origin}: " + "; ".join(lines)) from None


def parse_setting(text: str) -> tuple[str, Any]:
    """Split `mask.blur_kernel_px=5` into (path, value) and parse the value as YAML. Raises ConfigError."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"{text!r}: expected KEY=VALUE, for example mask.blur_kernel_px=5")
    try:
        return key.strip(), yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"{key.strip()}: {value!r} is not YAML: {error}") from None


def home_folder() -> Path:
    """Return the folder for caches and other local files: DAGSTER_HOME, else `.bananagrams`."""
    home = os.environ.get("DAGSTER_HOME")
    return Path(home or ".bananagrams").expanduser().absolute()


def default_store(profile: Profile) -> str:
    """Return the store's URL: the profile's, else `store` under DAGSTER_HOME, else `.bananagrams/store`."""
    return profile.store.url or str(home_folder() / "store")


def _profile_path(name: str) -> Path:
    bundled = sorted(path.stem for path in PROFILES.glob("*.yaml"))
    if name in bundled:
        return PROFILES / f"{name}.yaml"
    path = Path(name).expanduser()
    if path.is_file():
        return path
    raise ConfigError(
        f"profile {name!r} does not exist: it is neither a bundled profile ({', '.join(bundled)}) nor a file"
    )


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML: {error}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected a mapping of sections, found {type(content).__name__}")
    return content


def _environment_settings() -> Iterator[tuple[str, Any]]:
    for line in os.environ.get(SET_VARIABLE, "").splitlines():
        if line.strip():
            yield parse_setting(line)


def _nested(path: str, value: Any) -> dict[str, Any]:
    for key in reversed(path.split(".")):
        value = {key: value}
    return value  # type: ignore[no-any-return]


def _merge(target: dict[str, Any], sources: dict[str, str], content: Mapping[str, Any], source: str) -> None:
    for path, value in flatten(content):
        sources[path] = source
        *parents, leaf = path.split(".")
        section = target
        for parent in parents:
            inner = section.setdefault(parent, {})
            if not isinstance(inner, dict):
                inner = section[parent] = {}
            section = inner
        if value == {}:
            section.setdefault(leaf, value)
        else:
            section[leaf] = value


def _tuples(value: Any) -> Any:
    """Convert lists to tuples: fields are tuples, and strict validation does not accept a list for them."""
    if isinstance(value, Mapping):
        return {str(key): _tuples(inner) for key, inner in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _explain(model: type[BaseModel], detail: Any) -> str:
    location: Sequence[str | int] = detail["loc"]
    path = ".".join(str(part) for part in location) or "profile"
    if detail["type"] == "extra_forbidden":
        if path in RENAMED_SETTINGS:
            return f"{path}: this setting is now called {RENAMED_SETTINGS[path]}"
        allowed = sorted(_section_at(model, location[:-1]).model_fields)
        close = difflib.get_close_matches(str(location[-1]), allowed, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        return f"{path}: unknown key; {hint}allowed here: {', '.join(allowed)}"
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] == "value_error":
        return f"{path}: {message}"
    return f"{path}: {detail['input']!r} is not allowed: {message[0].lower()}{message[1:]}"


def _section_at(model: type[BaseModel], location: Sequence[str | int]) -> type[BaseModel]:
    for part in location:
        if isinstance(part, int):  # an index into a tuple whose elements have one type
            continue
        annotation: Any = model.model_fields[part].annotation
        if typing.get_origin(annotation) is tuple:
            annotation = typing.get_args(annotation)[0]
        if typing.get_origin(annotation) in (typing.Union, types.UnionType):
            annotation = next(arg for arg in typing.get_args(annotation) if isinstance(arg, type))
        model = annotation
    return model
