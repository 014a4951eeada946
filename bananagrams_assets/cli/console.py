"""Text output of the commands."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from ..config import Profile
from ..profiles import LoadedProfile, default_store, home_folder

if TYPE_CHECKING:
    from ..vision.mask import EditMask


@contextmanager
def progress(total: int, unit: str) -> Iterator[Callable[[str], None]]:
    """Show a bar on a terminal, plain lines elsewhere; yield a function to call with a line per step."""
    if not sys.stderr.isatty():
        yield lambda line: click.echo(line)
        return
    from tqdm import tqdm

    with tqdm(total=total, unit=unit, dynamic_ncols=True) as bar:

        def report(line: str) -> None:
            bar.write(line)
            bar.update()

        yield report


def source_of(path: str, loaded: LoadedProfile) -> str:
    """Return the source of a setting's value; a source may set a whole section at once."""
    while path:
        if path in loaded.sources:
            return loaded.sources[path]
        path = path.rpartition(".")[0]
    return "default"


def tracking_uri(profile: Profile) -> str:
    from ..learn.tracking import default_tracking_uri

    return default_tracking_uri(default_store(profile))


def show_results(profile: Profile) -> None:
    show_dataset(profile)
    show_model(profile)
    home = home_folder()
    click.echo(f"lineage  DAGSTER_HOME={home} dagster dev        → http://127.0.0.1:3000")
    click.echo(f"runs     mlflow ui --backend-store-uri {tracking_uri(profile)}  → http://127.0.0.1:5000")


def show_dataset(profile: Profile) -> None:
    """Print the locations of the dataset and its pages, and the number of samples per split."""
    from ..stages.receipts import read_receipt
    from ..storage import paths
    from ..storage.open_store import open_store

    store = open_store(default_store(profile))
    for split in profile.splits.by_name():
        if receipt := read_receipt(store, "split_index", split):
            location = store.describe(f"shards/{split}")
            click.echo(f"dataset  {split:5}  {receipt.stats['samples']:7} samples  {location}")
    first = profile.shard_keys()[0]
    click.echo(f"pages    {store.describe(paths.overlays_page(first))}")


def show_model(profile: Profile) -> None:
    """Print dev IoU, the trivial baselines, the model's version and its registry."""
    from ..stages.receipts import read_receipt
    from ..stages.stage import UNPARTITIONED
    from ..storage.open_store import open_store

    store = open_store(default_store(profile))
    if not (receipt := read_receipt(store, "mask_model", UNPARTITIONED)):
        return
    stats = receipt.stats
    baselines = ", ".join(f"{name} mask {value:.3f}" for name, value in stats["baselines"].items())
    click.echo(f"model    dev IoU {stats['dev_iou']:.3f}   trivial baselines: {baselines}")
    name = profile.mlflow.registered_model
    click.echo(f"model    models:/{name}/{stats['model_version']}  in {tracking_uri(profile)}")
    if champion := read_receipt(store, "champion", UNPARTITIONED):
        click.echo(f"champion {champion.stats['reason']}")


def show_registry(profile: Profile) -> None:
    """Print the version of each alias and the reason for the choice."""
    from ..learn import registry

    for alias in (registry.CHAMPION, registry.PREVIOUS, registry.CHALLENGER):
        version, reason = registry.read_decision(tracking_uri(profile), profile, alias)
        click.echo(f"{alias:10}  {f'version {version}' if version else 'none':12}  {reason}".rstrip())


def show_status(profile: Profile) -> None:
    """Print a line per shard, the total, failures by reason, and the remaining time."""
    from ..stages.status import status_of
    from ..storage.open_store import open_store

    status = status_of(open_store(default_store(profile)), profile)
    columns = ("shard", "records", "done", "ok", "failed", "refused", "to retry", "MB", "images/s")
    rows: list[tuple[str, ...]] = [columns]
    for shard in (*status.shards, status.total):
        rate = f"{shard.images / shard.seconds:.1f}" if shard.images and shard.seconds else "-"
        counts = (shard.records, shard.done, shard.ok, shard.failed, shard.refused, shard.to_retry)
        rows.append((shard.shard, *map(str, counts), f"{shard.bytes / 1e6:.1f}", rate))
    widths = [max(len(row[column]) for row in rows) for column in range(len(columns))]
    for row in rows:
        cells = zip(row[1:], widths[1:], strict=True)
        click.echo("  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in cells)]))
    for reason, count in status.total.reasons.items():
        click.echo(f"{count:8}  {reason}")
    if status.total.waiting:
        click.echo(f"{status.total.waiting} images of unfinished shards are kept for the next run")
    if status.total.to_retry:
        click.echo(f"{status.total.to_retry} failures can be retried: bananagrams build --retry-failed")
    click.echo(f"time left: {_duration(status.left_s)}")


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "unknown, nothing fetched yet"
    if seconds == 0:
        return "none, all shards are fetched"
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours} h {rest // 60} min" if hours else f"{rest // 60} min {rest % 60} s"


def mask_in_words(mask: EditMask) -> str:
    """Describe an edit mask in a few words."""
    if mask.verdict == "nothing":
        return "no visible edit"
    if mask.is_global:
        return "global edit over the whole overlap"
    parts = "1 part" if mask.components == 1 else f"{mask.components} parts"
    return f"local edit over {mask.area:.1%} of the image, in {parts}"


def confidence_in_words(confidence: float) -> str:
    """Describe a confidence, 0..1, by a word and the number."""
    word = "high" if confidence >= 0.8 else "fair" if confidence >= 0.5 else "low"
    return f"{word} confidence ({confidence:.2f})"


def show_mask_scores(summary: Mapping[str, Any]) -> None:
    """Print the result of `evaluation.mask_evaluation.summarise_scores`."""
    columns = ("iou", "precision", "recall", "boundary_f")

    def number(value: float | None, digits: int = 3) -> str:
        return "-" if value is None else f"{value:.{digits}f}"

    groups = {"all local edits": summary["local"]}
    groups |= {f"strength {name}": row for name, row in summary["by_strength"].items()}
    groups |= summary["by_family"]
    width = max(len(name) for name in groups)
    click.echo(f"{'':{width}}  pairs     IoU  precision  recall  boundary F")
    for name, row in groups.items():
        iou, precision, recall, boundary = (number(row[column]) for column in columns)
        click.echo(f"{name:{width}}  {row['pairs']:5}  {iou:>6}  {precision:>9}  {recall:>6}  {boundary:>10}")
    for truth, predicted in summary["verdicts"].items():
        listed = ", ".join(f"{name} {count}" for name, count in predicted.items())
        click.echo(f"true verdict {truth}: predicted {listed}")
    untouched, corners = summary["false_area"], summary["corner_px"]
    if untouched["pairs"]:
        click.echo(
            f"{untouched['pairs']} pairs without a visible edit: false area {number(untouched['mean'], 5)}, "
            f"at most {number(untouched['max'], 5)}"
        )
    if corners["pairs"]:
        click.echo(
            f"{corners['pairs']} aligned pairs: corner error {number(corners['median'], 2)} px (median), "
            f"{number(corners['p95'], 2)} px (95th percentile); {corners['over_8']} over 8 px"
        )
    for name, row in summary["confidence"].items():
        if row["pairs"]:
            click.echo(
                f"confidence of {name}: AUROC {number(row['auroc'])}, "
                f"calibration error {number(row['calibration_error'])}"
            )
    for name, problem in summary["not_read"].items():
        click.echo(f"unreadable: {name}: {problem}")
    if summary["not_aligned"]:
        click.echo(f"{summary['not_aligned']} pairs could not be aligned")
