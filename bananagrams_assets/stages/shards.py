"""The `shards` stage: the dataset as WebDataset tars."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..config import Profile, digest_of
from ..storage import paths
from ..storage.sample_tar import SAMPLE_PARTS, Sample, SampleWriter, join_by_key, read_samples, sample_writer
from ..storage.tables import SHARDS_COLUMNS, by_key, read_table, write_table
from ..vision.geometry import Floats, project, rescale_homography, resize_homography
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
from .edit_masks import MASK_PART
from .stage import StageResult, StageRun, settings_values
from .statistics import by_edit_type, counts, histogram, median, reasons

FORMAT_VERSION = "2"
"""Version of a sample's five files and of its metadata fields."""

SAMPLE_SETTINGS = ("fetch", "align", "mask", "shards", "source.license")
"""All settings that shape a sample. `meta.json` holds their digest, so each of them makes a shard stale."""

REVIEWS = "shards.reviews"
"""The external input with the samples that reviewers labelled bad."""


@dataclass(frozen=True)
class _Location:
    """The offset of a sample's first header in the tar, and the length and SHA-256 of each part, in order."""

    offset: int
    part_bytes: list[int]
    sha256: list[str]


@dataclass(frozen=True)
class _Tables:
    """The rows of a shard's tables by key."""

    records: dict[str, dict[str, Any]]
    pairs: dict[str, dict[str, Any]]
    aligned: dict[str, dict[str, Any]]
    masks: dict[str, dict[str, Any]]


def pack_shard(run: StageRun) -> StageResult:
    """Write `shards/<split>/<shard>.tar`, and a table with one row for each record.

    A row is `written`, or `dropped` with the stage and the reason. `input.jpg` is the stored image if that is
    an upright RGB JPEG of at most `shards.largest_side_px`. Otherwise the image is encoded again, and mask,
    homography and overlap are scaled to its size. With `shards.untouched` a sample whose image would have to
    be encoded is dropped. Raises StoreError, SampleError.
    """
    store, profile, shard = run.store, run.settings, run.partition
    tables = _Tables(
        by_key(read_table(store, paths.manifest_table(shard))),
        by_key(read_table(store, paths.pairs_table(shard))),
        by_key(read_table(store, paths.aligned_table(shard))),
        by_key(read_table(store, paths.masks_table(shard))),
    )
    config_digest = dataset_digest(profile)
    failures: dict[str, str] = dict(run.external[REVIEWS].value) if REVIEWS in run.external else {}
    written: dict[str, _Location] = {}
    with (
        store.open(paths.pairs_tar(shard)) as pairs,
        store.open(paths.masks_tar(shard)) as masks,
        sample_writer(store, paths.shard_tar(shard)) as tar,
    ):
        for pair, mask in join_by_key(read_samples(pairs), read_samples(masks)):
            if mask is None or pair.key not in tables.records or pair.key not in tables.aligned:
                continue
            if pair.key in failures:
                continue
            try:
                written[pair.key] = _pack(tar, pair, mask.parts[MASK_PART], tables, profile, config_digest)
            except ImageError as error:
                failures[pair.key] = str(error)
                continue
            if len(written) % 200 == 0:
                run.log(f"{shard}: {len(written)} samples written")
    rows = [_row(key, tables, written, failures) for key in sorted(tables.records)]
    files = {
        paths.shard_tar(shard): tar.file.info,
        paths.shard_table(shard): write_table(store, paths.shard_table(shard), SHARDS_COLUMNS, rows),
    }
    run.log(f"{shard}: {len(written)} samples, {len(rows) - len(written)} records dropped")
    return StageResult(files, _stats(rows, tar.file.info.bytes))


def dataset_digest(profile: Profile) -> str:
    """Return 16 hex digits over the settings that shape a sample."""
    return digest_of(settings_values(profile, SAMPLE_SETTINGS))


def _pack(
    tar: SampleWriter, pair: Sample, mask_png: bytes, tables: _Tables, profile: Profile, config_digest: str
) -> _Location:
    record = tables.records[pair.key]
    data = pair.part("input") or b""
    mask = decode_mask(mask_png)
    size = mask.shape[1], mask.shape[0]
    side = profile.shards.largest_side_px
    packed_size = fitted_size(size, side) if side is not None else size
    if profile.shards.untouched:
        _check_untouched(data, packed_size != size, tables.pairs[pair.key]["sha256_input"])
    elif packed_size != size or not is_plain_jpeg(data):
        rgb = decode(data, profile.fetch.max_pixels)
        data = encode_jpeg(_resized(rgb, packed_size), profile.shards.jpeg_quality)
    mask = _resized_mask(mask, packed_size)
    meta = _meta(pair.key, tables, profile, config_digest, packed_size)
    contents = (
        data,
        encode_png_mask(mask, one_bit=False),
        record["text"].encode(),
        record["summary"].encode(),
        json.dumps(meta, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode(),
    )
    location = _Location(
        tar.file.tell(),
        [len(content) for content in contents],
        [hashlib.sha256(content).hexdigest() for content in contents],
    )
    for part, content in zip(SAMPLE_PARTS, contents, strict=True):
        tar.add(pair.key, part, content)
    return location


def _check_untouched(data: bytes, is_larger: bool, received: str) -> None:
    """Raise ImageError for a stored image that cannot be packed with the bytes as received."""
    if is_larger:
        raise ImageError("untouched: it is larger than shards.largest_side_px")
    if not is_plain_jpeg(data):
        raise ImageError("untouched: it is no upright RGB JPEG and would have to be encoded")
    if hashlib.sha256(data).hexdigest() != received:
        raise ImageError("untouched: it was fitted to fetch.largest_side_px when it was fetched")


def is_plain_jpeg(data: bytes) -> bool:
    """Return whether `data` is an RGB JPEG in upright orientation, which can be packed without encoding."""
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
    key: str, tables: _Tables, profile: Profile, config_digest: str, size: tuple[int, int]
) -> dict[str, Any]:
    record, pair = tables.records[key], tables.pairs[key]
    aligned, mask = tables.aligned[key], tables.masks[key]
    before = aligned["width"], aligned["height"]
    edited = aligned["edited_width"], aligned["edited_height"]
    homography: Floats = np.array(aligned["homography"], np.float64).reshape(3, 3)
    overlap: Floats = np.array(aligned["overlap"], np.float64).reshape(-1, 2)
    if size != before:
        homography = rescale_homography(homography, edited, edited, before, size)
        overlap = project(resize_homography(before, size), overlap)
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
    key: str, tables: _Tables, written: Mapping[str, _Location], failures: Mapping[str, str]
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


def _dropped(key: str, tables: _Tables, failures: Mapping[str, str]) -> tuple[str, str]:
    """Return the stage and the reason why a record has no sample."""
    pair, aligned, mask = (table.get(key) for table in (tables.pairs, tables.aligned, tables.masks))
    if pair is None:
        return "image_pairs", "not fetched: the pictures are older than the manifest"
    if pair["status"] != "ok":
        return "image_pairs", pair["reason"]
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
