"""The `shards` stage: the dataset, as WebDataset tars."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..config import Profile, digest_of
from ..progress import Log
from ..storage import paths
from ..storage.sample_tar import Sample, SampleWriter, read_samples, sample_writer
from ..storage.store import Store
from ..storage.tables import SHARDS, by_key, read_table, write_table
from ..vision.geometry import Floats, project, rescaled, resizing
from ..vision.images import (
    RGB,
    ImageError,
    Mask,
    decode,
    decode_mask,
    encode_jpeg,
    encode_png_mask,
    fitted_size,
    resize,
)
from .edit_masks import with_masks
from .reviews import judged_bad
from .stage import STAGES, StageResult
from .statistics import by_edit_type, counts, histogram, median, reasons

FORMAT_VERSION = "2"
"""Of a sample's five files and of the fields of its metadata."""

PARTS = ("input.jpg", "mask.png", "text.txt", "summary.txt", "meta.json")


@dataclass(frozen=True)
class _Place:
    """Where a sample's first header lies in the tar; length and SHA-256 of each of its parts, in order."""

    offset: int
    part_bytes: list[int]
    sha256: list[str]


@dataclass(frozen=True)
class _Rows:
    """A shard's tables, by key."""

    records: dict[str, dict[str, Any]]
    pairs: dict[str, dict[str, Any]]
    aligned: dict[str, dict[str, Any]]
    masks: dict[str, dict[str, Any]]


def pack_shard(store: Store, profile: Profile, shard: str, log: Log) -> StageResult:
    """Write `shards/<split>/<shard>.tar` and a row for every record: written, or dropped at which stage.

    `input.jpg` is the stored picture itself if that is an upright RGB JPEG of no more than
    `shards.largest_side_px`; otherwise it is encoded anew, and mask, homography and overlap are brought
    to its size. With `shards.untouched` it is always the picture as it was received, and what cannot go in
    like that is dropped. Raises StoreError, SampleError.
    """
    tables = _Rows(
        by_key(read_table(store, paths.manifest_table(shard))),
        by_key(read_table(store, paths.pairs_table(shard))),
        by_key(read_table(store, paths.aligned_table(shard))),
        by_key(read_table(store, paths.masks_table(shard))),
    )
    config_digest = dataset_digest(profile)
    failures = judged_bad(store, profile, shard)
    written: dict[str, _Place] = {}
    with (
        store.open(paths.pairs_tar(shard)) as pairs,
        store.open(paths.masks_tar(shard)) as masks,
        sample_writer(store, paths.shard_tar(shard)) as tar,
    ):
        for pair, mask in with_masks(read_samples(pairs), read_samples(masks)):
            if mask is None or pair.key not in tables.records or pair.key not in tables.aligned:
                continue
            if pair.key in failures:
                continue
            try:
                written[pair.key] = _pack(tar, pair, mask, tables, profile, config_digest)
            except ImageError as error:
                failures[pair.key] = str(error)
                continue
            if len(written) % 200 == 0:
                log(f"{shard}: {len(written)} samples written")
    rows = [_row(key, tables, written, failures) for key in sorted(tables.records)]
    files = {
        paths.shard_tar(shard): tar.file.info,
        paths.shard_table(shard): write_table(store, paths.shard_table(shard), SHARDS, rows),
    }
    log(f"{shard}: {len(written)} samples, {len(rows) - len(written)} records dropped")
    return StageResult(files, _stats(rows, tar.file.info.bytes))


def dataset_digest(profile: Profile) -> str:
    """16 hex digits over the settings that shape a sample's files.

    They are the settings that make a shard stale: a sample never tells of others than it was made with.
    """
    return digest_of(STAGES["shards"].settings(profile))


def _pack(
    tar: SampleWriter, pair: Sample, mask_png: bytes, tables: _Rows, profile: Profile, config_digest: str
) -> _Place:
    record = tables.records[pair.key]
    data = pair.part("input") or b""
    mask = decode_mask(mask_png)
    size = mask.shape[1], mask.shape[0]
    side = profile.shards.largest_side_px
    now = fitted_size(size, side) if side is not None else size
    if profile.shards.untouched:
        _refuse_touched(data, now != size, tables.pairs[pair.key]["sha256_input"])
    elif now != size or not is_plain_jpeg(data):
        rgb = decode(data, profile.fetch.max_pixels)
        data = encode_jpeg(_resized(rgb, now), profile.shards.jpeg_quality)
    mask = _resized_mask(mask, now)
    meta = _meta(pair.key, tables, profile, config_digest, now)
    contents = (
        data,
        encode_png_mask(mask, one_bit=False),
        record["text"].encode(),
        record["summary"].encode(),
        json.dumps(meta, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode(),
    )
    place = _Place(
        tar.file.tell(),
        [len(content) for content in contents],
        [hashlib.sha256(content).hexdigest() for content in contents],
    )
    for part, content in zip(PARTS, contents, strict=True):
        tar.add(pair.key, part, content)
    return place


def _refuse_touched(data: bytes, is_larger: bool, received: str) -> None:
    """Raise PictureError for a stored picture that cannot be shipped as it was received."""
    if is_larger:
        raise ImageError("untouched: it is larger than shards.largest_side_px")
    if not is_plain_jpeg(data):
        raise ImageError("untouched: it is no upright RGB JPEG and would have to be encoded")
    if hashlib.sha256(data).hexdigest() != received:
        raise ImageError("untouched: it was fitted to fetch.largest_side_px when it was fetched")


def is_plain_jpeg(data: bytes) -> bool:
    """Whether these bytes are an RGB JPEG that stands upright, and so can be shipped as they are."""
    from PIL import ExifTags, Image

    if not data.startswith(b"\xff\xd8"):
        return False
    with Image.open(io.BytesIO(data)) as image:
        upright = image.getexif().get(ExifTags.Base.Orientation, 1) in (0, 1)
        return image.format == "JPEG" and image.mode == "RGB" and upright


def _resized(rgb: RGB, size: tuple[int, int]) -> RGB:
    return rgb if (rgb.shape[1], rgb.shape[0]) == size else np.asarray(resize(rgb, size), np.uint8)


def _resized_mask(mask: Mask, size: tuple[int, int]) -> Mask:
    if (mask.shape[1], mask.shape[0]) == size:
        return mask
    return np.asarray(resize(mask.astype(np.uint8) * 255, size) >= 128)


def _meta(
    key: str, tables: _Rows, profile: Profile, config_digest: str, size: tuple[int, int]
) -> dict[str, Any]:
    record, pair = tables.records[key], tables.pairs[key]
    aligned, mask = tables.aligned[key], tables.masks[key]
    before = aligned["width"], aligned["height"]
    edited = aligned["edited_width"], aligned["edited_height"]
    homography: Floats = np.array(aligned["homography"], np.float64).reshape(3, 3)
    overlap: Floats = np.array(aligned["overlap"], np.float64).reshape(-1, 2)
    if size != before:
        homography = rescaled(homography, edited, edited, before, size)
        overlap = project(resizing(before, size), overlap)
    copied = (
        "key", "edit_type", "category", "scope", "kind", "turn", "source_id", "split", "shard", "input_url",
        "output_url", "output_image", "attribution", "rotation",
    )  # fmt: skip
    return {
        **{name: record[name] for name in copied},
        "width": size[0],
        "height": size[1],
        "edited_width": edited[0],
        "edited_height": edited[1],
        "homography": homography.tolist(),
        "alignment": {
            "method": aligned["method"],
            "inliers": aligned["inliers"],
            "inlier_ratio": aligned["inlier_ratio"],
            "residual_px": aligned["residual_px"] * max(size) / max(before),
            "confidence": aligned["confidence"],
        },
        "overlap": overlap.tolist(),
        "mask": {
            name: mask[name] for name in ("verdict", "is_global", "area", "components", "confidence", "noise")
        },
        "sha256": {"input": pair["sha256_input"], "edited": pair["sha256_edited"]},
        "license": profile.source.license,
        "version": FORMAT_VERSION,
        "config_digest": config_digest,
    }


def _row(
    key: str, tables: _Rows, written: Mapping[str, _Place], failures: Mapping[str, str]
) -> dict[str, Any]:
    record, mask = tables.records[key], tables.masks.get(key)
    stage, reason = ("", "") if key in written else _dropped(key, tables, failures)
    return {
        "key": key,
        "status": "written" if key in written else "dropped",
        "stage": stage,
        "reason": reason,
        "edit_type": record["edit_type"],
        "category": record["category"],
        "scope": record["scope"],
        "verdict": mask["verdict"] if mask else "",
        "area": mask["area"] if mask else 0.0,
        "confidence": mask["confidence"] if mask else 0.0,
        "source_id": record["source_id"],
        "attribution": record["attribution"],
        "input_url": record["input_url"],
        "offset": written[key].offset if key in written else None,
        "part_bytes": written[key].part_bytes if key in written else [],
        "sha256": written[key].sha256 if key in written else [],
    }


def _dropped(key: str, tables: _Rows, failures: Mapping[str, str]) -> tuple[str, str]:
    """(stage, reason) for a record that gave no sample."""
    pair, aligned, mask = (table.get(key) for table in (tables.pairs, tables.aligned, tables.masks))
    if pair is None or pair["status"] != "ok":
        return "image_pairs", pair[
            "reason"
        ] if pair else "not fetched: the pictures are older than the manifest"
    if aligned is None or not aligned["accepted"]:
        return "aligned_pairs", aligned["reason"] if aligned else "not aligned: older than its pictures"
    if mask is None or not mask["verdict"]:
        return "edit_masks", mask["reason"] if mask else "no mask: older than its pictures"
    return "shards", failures.get(key, "no mask in the shard of masks")


def _stats(rows: list[dict[str, Any]], size: int) -> dict[str, Any]:
    written = [row for row in rows if row["status"] == "written"]
    dropped = [row for row in rows if row["status"] != "written"]
    types = {row["key"]: row["edit_type"] for row in rows}
    return {
        "records": len(rows),
        "written": len(written),
        "dropped": len(dropped),
        "dropped_by_stage": counts(row["stage"] for row in dropped),
        "reasons": reasons(dropped),
        "bytes": size,
        "verdicts": counts(row["verdict"] for row in written),
        "median_confidence": median(row["confidence"] for row in written),
        "area_histogram": histogram(row["area"] for row in written),
        "confidence_histogram": histogram(row["confidence"] for row in written),
        "by_edit_type": by_edit_type(rows, types, "written", lambda row: row["status"] == "written"),
    }
