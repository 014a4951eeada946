"""Options that several commands share."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from ..profiles import LoadedProfile, load_profile, parse_setting

CORES = os.cpu_count() or 1


def profile_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --profile, --store and --set to a command."""
    for option in (
        click.option("--set", "settings", multiple=True, metavar="KEY=VALUE",
                     help="Change one setting, for example --set mask.blur_kernel_px=5; may be repeated."),
        click.option("--store", metavar="DIR_OR_S3", help="Folder or s3://bucket/prefix for all files."),
        click.option("--profile", metavar="NAME_OR_FILE", help="demo, pico-banana, or a YAML file."),
    ):  # fmt: skip
        command = option(command)
    return command


def workers_option(what: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add --workers, the number of processes, to a command."""
    return click.option(
        "--workers", type=click.IntRange(min=1), default=CORES, show_default=True,
        help=f"{what} in parallel.",
    )  # fmt: skip


def model_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --model to a command that predicts."""
    return click.option(
        "--model", default="champion", show_default=True, metavar="NAME",
        help="Alias or version in the registry, models:/NAME@ALIAS, or a checkpoint: its name in the store, "
             "or a path.",
    )(command)  # fmt: skip


def resolve(
    profile: str | None,
    store: str | None,
    settings: Sequence[str],
    overrides: Mapping[str, Any] | None = None,
) -> LoadedProfile:
    """Return the profile with the settings of the command line. Raises ConfigError."""
    chosen = dict(parse_setting(text) for text in settings) | dict(overrides or {})
    if store:
        chosen["store.url"] = store if "://" in store else str(Path(store).expanduser().absolute())
    return load_profile(profile, chosen)
