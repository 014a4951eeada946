"""Commands about settings."""

from __future__ import annotations

import json

import click

from ..config import flatten
from ..profiles import default_store
from .console import source_of
from .options import ProfileChoice, profile_options


@click.group()
def config() -> None:
    """Show settings."""


@config.command("show")
@profile_options
def config_show(choice: ProfileChoice) -> None:
    """Print every effective setting and the source of its value."""
    loaded = choice.load()
    click.echo(f"# profile {loaded.name}; store {default_store(loaded.profile)}")
    rows = [
        (f"{path}: {json.dumps(value)}", source_of(path, loaded))
        for path, value in flatten(loaded.profile.model_dump(mode="json"))
    ]
    width = min(80, max(len(left) for left, _ in rows))
    for left, source in rows:
        click.echo(f"{left:{width}}  # {source}")
