"""Commands that build, inspect and verify the dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..config import Profile
from ..profiles import default_store, home_folder
from .console import progress, show_dataset, show_results, show_status
from .model import train_stale
from .options import ProfileChoice, profile_options, workers_option


@click.command()
@workers_option("Shards built")
@profile_options
def demo(workers: int, choice: ProfileChoice) -> None:
    """Run the whole graph on the embedded sample: dataset, pages, a trained and registered model.

    It needs no network. A second run finds everything up to date.
    """
    loaded = choice.load("demo")
    count = build_stale(loaded.profile, workers)
    click.echo(f"dataset: {count} partitions built" if count else "dataset: everything is up to date")
    if train_stale(loaded.profile, rebuild=False, resume=None):
        click.echo("model: trained and registered")
    else:
        click.echo("model: everything is up to date")
    show_results(loaded.profile)


@click.command()
@click.option("--manifest", "manifests", multiple=True, metavar="FILE_OR_URL",
              help="JSON-lines file of records, local or http(s); may be repeated.")  # fmt: skip
@click.option("--max-samples", type=click.IntRange(min=1), help="Take at most N records, spread evenly.")
@workers_option("Shards built")
@click.option("--dev", is_flag=True, help="Also extract each shard into a folder under DAGSTER_HOME.")
@click.option("--retry-failed", is_flag=True, help="Fetch images with retryable failures again.")
@profile_options
def build(
    manifests: tuple[str, ...],
    max_samples: int | None,
    workers: int,
    dev: bool,
    retry_failed: bool,
    choice: ProfileChoice,
) -> None:
    """Build the dataset: images, alignment, masks, shards, split indexes and review pages.

    Only missing and stale partitions are built. Records may name local files (`local_input_image`, and
    `output_image` relative to the manifest).

    \b
    bananagrams build --profile pico-banana --max-samples 500 --store pico-500 --dev
    bananagrams build --manifest mine/sft.jsonl --store s3://bucket/prefix
    """
    overrides: dict[str, Any] = {}
    if manifests:
        overrides["source.manifests"] = [
            name if "://" in name or name == "sample:" else str(Path(name).expanduser().absolute())
            for name in manifests
        ]
    if max_samples:
        overrides["source.max_samples"] = max_samples
    loaded = choice.load(overrides=overrides)
    count = build_stale(loaded.profile, workers, retry_failed)
    click.echo(f"{count} partitions built" if count else "everything is up to date")
    if dev:
        extract_all(loaded.profile)
    show_dataset(loaded.profile)


def build_stale(profile: Profile, workers: int, retry_failed: bool = False) -> int:
    """Build every stale partition of the dataset; return how many were built.

    With `retry_failed` shards with retryable failures count as stale. Dagster is imported only if there is
    something to build, because that takes a second.
    """
    from ..graph import DATASET_STAGES
    from ..stages.staleness import stale_partitions
    from ..stages.status import retryable_failures
    from ..storage.open_store import open_store

    store = open_store(default_store(profile))
    if not stale_partitions(store, profile, DATASET_STAGES) and not (
        retry_failed and any(retryable_failures(store, shard) for shard in profile.shard_keys())
    ):
        return 0
    from . import local

    with progress(1 + len(profile.shard_keys()) + 3, "partition") as report:
        return local.build_dataset(profile, workers, report, retry_failed)


def extract_all(profile: Profile) -> None:
    """Extract every shard into a folder under DAGSTER_HOME."""
    from ..dataset.extract import extract_shard
    from ..storage import paths
    from ..storage.open_store import open_store

    store = open_store(default_store(profile))
    for shard in profile.shard_keys():
        folder = home_folder() / "extracted" / shard
        with store.local_path(paths.shard_tar(shard)) as tar:
            count = extract_shard(tar, folder)
        click.echo(f"{folder}: {count} samples")


@click.command()
@profile_options
def status(choice: ProfileChoice) -> None:
    """Show the fetching progress of every shard: done, failed by reason, to retry, bytes, rate, time left."""
    show_status(choice.load().profile)


@click.command()
@click.argument("shards", nargs=-1, required=True, metavar="SHARD_OR_FOLDER...", type=click.Path(exists=True))
@click.option("--output", required=True, type=click.Path(file_okay=False), help="Folder for the pages.")
@profile_options
def validate(shards: tuple[str, ...], output: str, choice: ProfileChoice) -> None:
    """Draw the overlays of dataset shards (tar files) or extracted folders, to judge masks by eye.

    OUTPUT receives a page for each shard, and OUTPUT/index.html lists them. Labels saved from a page are
    applied by the next build: --set 'shards.reviews=[reviews.json]' leaves out the samples labelled bad.
    """
    loaded = choice.load()
    from ..dataset.validate import draw_shard

    paths = [Path(name).absolute() for name in shards]
    if len({path.stem for path in paths}) < len(paths):
        raise click.UsageError("two of these shards have the same name: give each its own --output")
    for path in paths:
        click.echo(draw_shard(path, Path(output), loaded.profile))
    click.echo(Path(output) / "index.html")


@click.command()
@click.argument("store_or_folder", required=False)
@workers_option("Shards read")
@profile_options
def verify(store_or_folder: str | None, workers: int, choice: ProfileChoice) -> None:
    """Read a whole dataset and report every fault with shard, sample and byte range.

    STORE_OR_FOLDER is a store, any folder or s3:// prefix with shards (tar files), or an extracted folder;
    the default is the profile's store. The exit status is 1 if anything is broken.

    \b
    bananagrams verify s3://bucket/prefix
    bananagrams verify /media/usb/dataset
    """
    loaded = choice.load()
    from ..dataset.verify import verify as verify_store
    from ..storage.open_store import open_store

    report = verify_store(open_store(store_or_folder or default_store(loaded.profile)), workers, click.echo)
    for fault in report.faults:
        click.echo(f"{fault}")
    click.echo(
        f"{report.shards} shards, {report.samples:,} samples, {report.bytes / 1e6:,.1f} MB: "
        + (f"{len(report.faults)} faults" if report.faults else "nothing is broken")
    )
    if report.faults:
        raise SystemExit(1)
