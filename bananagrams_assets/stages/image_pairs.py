"""The `image_pairs` stage: both images of every record, and a table with one row per record."""

from __future__ import annotations

import time
from contextlib import closing

from ..config import FetchSettings
from ..fetching import signals
from ..fetching.downloads import PAIR_PARTS
from ..fetching.earlier_build import open_earlier_build, table_metadata
from ..fetching.pair_outcomes import content_of, stats_of
from ..fetching.shard_download import ShardDownload
from ..fetching.spool import ResumableTar, open_spool, spool_folder
from ..progress import Log
from ..storage import paths
from ..storage.sample_tar import Sample
from ..storage.store import Store
from ..storage.tables import PAIRS_COLUMNS, read_table, write_table
from ..vision.images import RGB, ImageError, decode
from .stage import StageResult, StageRun


def fetch_pairs(run: StageRun) -> StageResult:
    """Write the shard's images, in key order, and its table of outcomes.

    Images are stored as received, or as JPEG of quality 95 if they are larger than `fetch.largest_side_px`
    and were resized to it. A failed image gives a row with its reason.

    No image is downloaded twice. The tar grows in the spool, which also holds images that are ready before
    their turn, so the next run resumes an interrupted one. Pairs and final failures of an earlier build of
    this shard are reused; to fetch everything again, delete the shard's table. At most 4 x
    `fetch.concurrency` pairs are started and 2 x `fetch.concurrency` images in memory. SIGINT and SIGTERM
    cancel the work at once and then have their usual effect.

    Raises FetchError if no server answers, StoreError and OSError for faults of this machine.
    """
    try:
        return _fetch_pairs(run.store, run.settings.fetch, run.partition, run.log)
    except signals.Interrupted as interrupted:
        run.log(f"{run.partition}: interrupted; finished images are kept for the next run")
        signals.reraise(interrupted)
        raise


def _fetch_pairs(store: Store, settings: FetchSettings, shard: str, log: Log) -> StageResult:
    records = read_table(store, paths.manifest_table(shard))
    table, tar_name, start = paths.pairs_table(shard), paths.pairs_tar(shard), time.monotonic()
    kind, metadata = settings.digest(), table_metadata(settings)
    with open_spool(store.url, shard, kind, log) as spool:
        with (
            open_earlier_build(store, shard, settings) as earlier,
            closing(ResumableTar(spool_folder(store.url, shard), kind, metadata)) as tar,
        ):
            download = ShardDownload(records, earlier, spool, settings, tar, log, shard)
            rows = download.run()
            tar_info = tar.finish()
        store.adopt(tar_name, tar.path, tar_info)
        files = {tar_name: tar_info, table: write_table(store, table, PAIRS_COLUMNS, rows, metadata)}
    seconds = max(time.monotonic() - start, 1e-9)
    stats = {
        **stats_of(rows),
        "kept": earlier.kept,
        **download.counts,
        "run_seconds": round(seconds, 3),
        "pictures_per_second": round(download.counts["fetched"] / seconds, 2),
        "megabytes_per_second": round(download.counts["fetched_bytes"] / seconds / 1e6, 3),
    }
    return StageResult(files, stats, content=content_of(rows, tar_info.sha256))


def decode_pair(sample: Sample, max_pixels: int) -> tuple[RGB, RGB]:
    """Return the input and the edited image of a sample of `image_pairs/<shard>.tar`. Raises ImageError."""
    images = []
    for part in PAIR_PARTS:
        data = sample.part(part)
        if data is None:
            raise ImageError(f"{part}: not in the shard")
        try:
            images.append(decode(data, max_pixels))
        except ImageError as error:
            raise ImageError(f"{part}: {error}") from error
    return images[0], images[1]
