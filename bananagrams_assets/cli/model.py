"""Commands that train, score, promote and use the mask model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..config import Profile, flatten
from ..profiles import default_store
from .console import progress, show_model, show_registry
from .images import read_image, write_overlay
from .options import ProfileChoice, model_option, profile_options

if TYPE_CHECKING:
    from ..learn.batch_prediction import Row


@click.command()
@click.option("--resume", metavar="CHECKPOINT",
              help="Start from a checkpoint: its name in the store, or a path.")  # fmt: skip
@click.option("--config", "config_file", metavar="FILE", type=click.Path(exists=True, dir_okay=False),
              help="A profile file; the same as --profile.")  # fmt: skip
@click.option("--rebuild", is_flag=True, help="Train even if nothing changed since the last training.")
@profile_options
def train(resume: str | None, config_file: str | None, rebuild: bool, choice: ProfileChoice) -> None:
    """Train the mask model on the built dataset, register it, and make it champion if it is better."""
    loaded = replace(choice, profile=config_file or choice.profile).load()
    if not train_stale(loaded.profile, rebuild, resume):
        click.echo("everything is up to date; --rebuild trains again")
    show_model(loaded.profile)


def train_stale(profile: Profile, rebuild: bool, resume: str | None) -> bool:
    """Train and promote if dataset, settings or code changed; return whether anything was done."""
    from ..graph import MODEL_STAGES
    from ..stages.staleness import stale_partitions
    from ..storage.open_store import open_store

    store = open_store(default_store(profile))
    if not (rebuild or resume or stale_partitions(store, profile, MODEL_STAGES)):
        return False
    from . import local

    local.train(profile, rebuild, resume)
    return True


@click.command()
@click.option("--back", is_flag=True, help="Make the previous champion champion again.")
@profile_options
def champion(back: bool, choice: ProfileChoice) -> None:
    """Show which version is champion and why, or return to the previous one.

    A withdrawn version becomes `previous`, so a second --back undoes the first. No comparison promotes it.
    """
    loaded = choice.load()
    if back:
        from . import local

        local.restore_previous_champion(loaded.profile)
    show_registry(loaded.profile)


@click.command()
@click.option("--split", type=click.Choice(["train", "dev", "test"]), default="test", show_default=True)
@model_option
@click.option("--output", type=click.Path(dir_okay=False), help="Write all metrics to this JSON file.")
@profile_options
def evaluate(split: str, model: str, output: str | None, choice: ProfileChoice) -> None:
    """Score a model on a split, beside the trivial baselines."""
    loaded = choice.load()
    from ..learn.evaluate import evaluate as score
    from ..learn.predict import load_model
    from ..storage.open_store import open_store

    predictor = load_model(model, loaded.profile)
    metrics = score(predictor, open_store(default_store(loaded.profile)), loaded.profile, split)
    for path, value in flatten(metrics):
        click.echo(f"{path:40} {value:.4f}" if isinstance(value, float) else f"{path:40} {value}")
    if output:
        Path(output).write_text(json.dumps(metrics, indent=1, sort_keys=True), encoding="utf-8")


@click.command()
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE... [INSTRUCTION]")
@click.option("--output", required=True, metavar="FILE_OR_DIR",
              help="PNG file for the mask of one photo (255: will change); otherwise a folder.")  # fmt: skip
@click.option("--overlay", metavar="FILE_OR_DIR",
              help="JPEG file for the mask drawn over the photo; for several photos a folder.")  # fmt: skip
@click.option("--soft", is_flag=True, help="Write probabilities, 0 to 255, instead of 0 and 255.")
@click.option("--threshold", type=click.FloatRange(0, 1),
              help="Least probability of a mask pixel; default: the best one on dev.")  # fmt: skip
@click.option("--batch-size", type=click.IntRange(min=1), default=16, show_default=True)
@model_option
@profile_options
def predict(
    sources: tuple[str, ...], output: str, overlay: str | None, soft: bool, threshold: float | None,
    batch_size: int, model: str, choice: ProfileChoice,
) -> None:  # fmt: skip
    """Predict which region of a photo an instruction will change.

    A SOURCE is a photo, a folder of photos, a table (CSV or JSON lines with the columns `photo` and
    `instruction`), or a shard of the dataset (a tar or an extracted folder). Tables and shards contain their
    own instructions. The masks of several photos go into a folder, with a table `predictions.csv` of all
    outcomes. A photo that cannot be read is a row with its reason and sets the exit status to 1; the others
    are predicted.

    \b
    bananagrams predict cat.jpg "Write HELLO in the top left" --output mask.png --overlay overlay.jpg
    bananagrams predict holiday "Remove the people" --output masks --overlay overlays
    bananagrams predict wishes.csv --output masks --soft
    bananagrams predict .bananagrams/store/shards/test/test-00000.tar --output masks
    """
    loaded = choice.load()
    paths, instruction = split_arguments(sources)
    if instruction and len(paths) == 1 and paths[0].is_file() and Path(output).suffix.lower() == ".png":
        predict_one(paths[0], instruction, output, overlay, soft, threshold, model, loaded.profile)
    else:
        predict_many(paths, instruction, output, overlay, soft, threshold, batch_size, model, loaded.profile)


def split_arguments(arguments: Sequence[str]) -> tuple[list[Path], str | None]:
    """Return the sources, and the instruction if the last argument is not a file or folder."""
    from ..vision.images import SUFFIXES

    last = Path(arguments[-1])
    if last.exists() or last.suffix.lower() in (*SUFFIXES, ".csv", ".jsonl", ".json", ".tar"):
        names, instruction = arguments, None
    else:
        names, instruction = arguments[:-1], arguments[-1].strip() or None
    for name in names:
        if not Path(name).exists():
            raise click.UsageError(f"{name}: no such file or folder")
    if not names:
        raise click.UsageError(f"{arguments[-1]}: no such file or folder")
    return [Path(name) for name in names], instruction


def predict_one(
    photo: Path, instruction: str, output: str, overlay: str | None, soft: bool, threshold: float | None,
    model: str, profile: Profile,
) -> None:  # fmt: skip
    """Predict one photo and write exactly the named files."""
    image = read_image(str(photo), profile)
    from ..learn.predict import encode_soft, load_model, predict_masks
    from ..vision.images import encode_png_mask

    predictor = load_model(model, profile)
    probability = predict_masks(predictor, [image], [instruction])[0]
    mask = probability >= (predictor.threshold if threshold is None else threshold)
    data = encode_soft(probability) if soft else encode_png_mask(mask, one_bit=False)
    Path(output).write_bytes(data)
    click.echo(f"{output}: {mask.mean():.1%} of the image will change")
    if overlay:
        write_overlay(overlay, image, mask)


def predict_many(
    paths: Sequence[Path], instruction: str | None, output: str, overlay: str | None, soft: bool,
    threshold: float | None, batch_size: int, model: str, profile: Profile,
) -> None:  # fmt: skip
    """Predict photos, folders, tables and shards into a folder. Raises ClickException if a photo failed."""
    from ..learn.batch_prediction import PREDICTIONS, Output, list_items, predict_all
    from ..learn.predict import load_model
    from ..storage.open_store import open_store

    items = list_items(paths, instruction)
    target = Output(open_store(output), open_store(overlay) if overlay else None, soft, threshold)
    predictor = load_model(model, profile)
    done = 0
    with progress(0, "photo") as report:

        def on_row(row: Row) -> None:
            nonlocal done
            done += 1
            outcome = f"{row.area:.1%} will change" if row.status == "ok" else f"failed: {row.reason}"
            report(f"{row.item.photo}: {outcome}")

        failed = predict_all(predictor, items, target, profile.fetch.max_pixels, on_row, batch_size)
    click.echo(f"{done - len(failed)} masks and {PREDICTIONS} in {output}")
    if failed:
        raise click.ClickException(
            f"{len(failed)} of {done} photos failed, see {PREDICTIONS}; the first: {failed[0].item.photo}: "
            f"{failed[0].reason}"
        )
