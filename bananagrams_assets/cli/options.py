"""Options that several commands share."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from ..profiles import LoadedProfile, load_profile, parse_setting

CORES = os.cpu_count() or 1


@dataclass(frozen=True)
class ProfileChoice:
    """The values of --profile, --store and --set."""

    profile: str | None
    store: str | None
    settings: Sequence[str]

    def load(self, name: str | None = None, overrides: Mapping[str, Any] | None = None) -> LoadedProfile:
        """Return the chosen profile, or `name` without a choice, with `overrides`. Raises ConfigError."""
        chosen = dict(parse_setting(text) for text in self.settings) | dict(overrides or {})
        if self.store:
            is_url = "://" in self.store
            chosen["store.url"] = self.store if is_url else str(Path(self.store).expanduser().absolute())
        return load_profile(self.profile or name, chosen)


def profile_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --profile, --store and --set to a command, which receives them as `choice`."""

    @functools.wraps(command)
    def with_choice(profile: str | None, store: str | None, settings: Sequence[str], **others: Any) -> Any:
        return command(choice=ProfileChoice(profile, store, settings), **others)

    for option in (
        click.option("--set", "settings", multiple=True, metavar="KEY=VALUE",
                     help="Change one setting, for example --set mask.blur_kernel_px=5; may be repeated."),
        click.option("--store", metavar="DIR_OR_S3", help="Folder or s3://bucket/prefix for all files."),
        click.option("--profile", metavar="NAME_OR_FILE", help="demo, pico-banana, or a YAML file."),
    ):  # fmt: skip
        with_choice = option(with_choice)
    return with_choice


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
