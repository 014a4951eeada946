"""The generated documentation is current, and the written one names files and settings that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from bananagrams_assets.cli.reference import DOCS, settings_reference, with_stage_table
from bananagrams_assets.config import Profile, flatten

ROOT = DOCS.parent
WRITTEN = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted(DOCS.glob("*.md"))]
SETTINGS = {path for path, _ in flatten(Profile().model_dump(mode="json"))}
SECTIONS = set(Profile.model_fields)


def test_the_reference_of_settings_is_current() -> None:
    found = (DOCS / "configuration.md").read_text(encoding="utf-8")
    assert found == settings_reference(), "run python -m bananagrams_assets.cli.reference"


def test_the_table_of_stages_is_current() -> None:
    found = (DOCS / "architecture.md").read_text(encoding="utf-8")
    assert found == with_stage_table(found), "run python -m bananagrams_assets.cli.reference"


def test_every_setting_has_a_meaning() -> None:
    def without_description(model: type[BaseModel], prefix: str = "") -> list[str]:
        missing = []
        for name, field in model.model_fields.items():
            if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
                missing += without_description(field.annotation, f"{prefix}{name}.")
            elif not field.description:
                missing.append(prefix + name)
        return missing

    assert without_description(Profile) == []


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: path.name)
def test_links_lead_to_files(path: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8"))
    local = [target for target in targets if "://" not in target]
    assert [target for target in local if not (path.parent / target).exists()] == []


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: path.name)
def test_named_settings_exist(path: Path) -> None:
    if path.name == "CHANGELOG.md":
        return
    named = re.findall(r"(?<=[`' ])([a-z]+(?:\.[a-z_0-9]+)+)(?==|`)", path.read_text(encoding="utf-8"))
    in_profile = [name for name in named if name.partition(".")[0] in SECTIONS]
    known = {prefix for path_ in SETTINGS for prefix in _prefixes(path_)}
    assert [name for name in in_profile if name not in known and not _is_file(name)] == []


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: path.name)
def test_named_source_files_exist(path: Path) -> None:
    named = re.findall(r"`((?:[a-z_]+/)+[a-z_0-9]+\.(?:py|jinja|js))`", path.read_text(encoding="utf-8"))
    places = (ROOT, ROOT / "bananagrams_assets", ROOT / "bananagrams_tests", DOCS)
    assert [name for name in named if not any((place / name).exists() for place in places)] == []


def _prefixes(path: str) -> list[str]:
    parts = path.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts) + 1)]


def _is_file(name: str) -> bool:
    return name.rpartition(".")[2] in ("py", "csv", "json", "jpg", "png", "db", "tar", "yaml", "parquet")
