"""The `bananagrams` command: thin commands over the same assets and functions that the Dagster UI uses."""

from __future__ import annotations

from typing import Any

import click

from .. import __version__
from ..errors import BananagramsError
from .dataset import build, demo, status, validate, verify
from .masks import evaluate_masks, mask, sample
from .model import champion, evaluate, predict, train
from .settings import config


class Commands(click.Group):
    """Prints a BananagramsError as one line with exit status 1. Other exceptions keep their traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BananagramsError as error:
            raise click.ClickException(" ".join(str(error).split())) from error


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__)
def main() -> None:
    """Turn photo edits into edit masks, and train a model that predicts them.

    \b
    Try it:            bananagrams demo
    Your own pairs:    bananagrams build --manifest sft.jsonl --store dataset
    One pair:          bananagrams mask before.jpg after.png --output mask.png --overlay overlay.jpg

    Every command works on the same assets, store and Dagster instance as `dagster dev`. The profile
    (--profile, or BANANAGRAMS_PROFILE) holds all settings; `bananagrams config show` prints them.
    """


for command in (
    demo, build, status, verify, validate, train, evaluate, champion, predict, mask, sample, evaluate_masks,
    config,
):  # fmt: skip
    main.add_command(command)
