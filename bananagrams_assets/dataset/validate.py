"""Review pages of any dataset shard, a tar or an extracted folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from ..config import Profile
from ..stages.overlay_page import CONTENTS, OverlayPage, SampleView, sample_view
from ..stages.statistics import median
from ..storage import paths
from ..storage.local import LocalStore
from ..storage.sample_tar import Sample, SampleError, join_by_key, read_folder, read_samples
from ..vision.geometry import frame_corners, image_size
from ..vision.images import ImageError, decode, decode_mask
from ..vision.page import REJECTED, PageRow, render_contents

_MAX_PIXELS = 2**28
"""Limit for images in a dataset shard, which have already passed the limit of their own profile."""


def draw_shard(path: Path, output: Path, profile: Profile) -> Path:
    """Draw a dataset shard, a tar or an extracted folder, into `<output>/<its name>`; return the page.

    The edited image and the difference are shown if the sample has a part `edited` or the shard lies in a
    store that holds the images. Samples come least confident first. A sample that cannot be drawn is listed
    with its reason. `<output>/index.html` lists all shards drawn there. Raises SampleError if `path` is not a
    shard, StoreError, OSError.
    """
    with _samples(path) as samples:
        rows = {sample.key: _row_of(sample) for sample in samples}
    ordered = sorted(rows, key=lambda key: (rows[key].confidence, key))
    wanted = ordered[: profile.overlays.max_samples]
    page = OverlayPage(LocalStore(output), f"{path.stem}/", profile.overlays, wanted)
    with _samples(path) as samples:
        for sample in samples:
            if sample.key in page.order:
                try:
                    page.add(sample.key, _view_of(sample, profile))
                except (ImageError, cv2.error, np.linalg.LinAlgError) as error:
                    reason = rows[sample.key].reason or str(error)
                    rows[sample.key] = replace(rows[sample.key], mask=REJECTED, reason=reason)
    shown = [rows[key] for key in wanted]
    confidence = median(row.confidence for row in rows.values() if row.mask != REJECTED)
    page.finish(path.stem, shown, sum(row.mask != REJECTED for row in rows.values()), confidence)
    names = sorted(file.parent.name for file in output.glob("*/summary.js"))
    LocalStore(output).write(CONTENTS, render_contents("Edit masks", names).encode())
    return output / path.stem / CONTENTS


@contextmanager
def _samples(path: Path) -> Iterator[Iterator[Sample]]:
    """Yield the samples of a tar or folder, with the edited images of the store around the tar."""
    try:
        if path.is_dir():
            yield read_folder(path)
            return
        pairs = path.absolute().parents[2] / paths.pairs_tar(path.stem) if _is_stored(path) else None
        with path.open("rb") as file:
            if pairs is None or not pairs.is_file():
                yield read_samples(file)
                return
            with pairs.open("rb") as pairs_file:
                yield _with_edited(read_samples(file), read_samples(pairs_file))
    except SampleError as error:
        raise SampleError(f"{path}: {error}") from error


def _is_stored(path: Path) -> bool:
    return path.absolute().as_posix().endswith(f"/{paths.shard_tar(path.stem)}")


def _with_edited(samples: Iterator[Sample], pairs: Iterator[Sample]) -> Iterator[Sample]:
    """Yield each sample with the `edited` image of its pair as a further part."""
    for sample, pair in join_by_key(samples, pairs):
        edited = pair.part("edited") if pair is not None else None
        yield sample if edited is None else Sample(sample.key, {**sample.parts, "edited": edited})


def _row_of(sample: Sample) -> PageRow:
    """Return the page row of a sample from its metadata. Missing values stay empty."""
    text = sample.parts.get("text.txt", b"").decode("utf-8", "replace")
    unknown = PageRow(sample.key, text, "", "", REJECTED, 0.0, 0.0, "", "", "")
    try:
        meta = json.loads(sample.parts.get("meta.json", b"{}"))
        mask = meta.get("mask", {})
        return replace(
            unknown,
            type=str(meta.get("edit_type") or ""),
            scope=str(meta.get("scope") or ""),
            mask=str(mask.get("verdict") or ("global" if mask.get("is_global") else "local")),
            confidence=round(float(mask.get("confidence", 0.0)), 4),
            area=round(float(mask.get("area", 0.0)), 4),
            source=str(meta.get("attribution") or meta.get("input_url") or ""),
            split=str(meta.get("split") or ""),
            shard=str(meta.get("shard") or ""),
        )
    except (ValueError, AttributeError, TypeError) as error:
        return replace(unknown, reason=f"meta.json cannot be read: {error}")


def _view_of(sample: Sample, profile: Profile) -> SampleView:
    photo, mask_png, edited = sample.part("input"), sample.parts.get("mask.png"), sample.part("edited")
    if photo is None or mask_png is None:
        raise ImageError(f"no {'input.jpg' if photo is None else 'mask.png'} in this sample")
    image, mask = decode(photo, _MAX_PIXELS), decode_mask(mask_png)
    size, (width, height) = image_size(image), image_size(mask)
    if (width, height) != size:
        raise ImageError(f"the mask is {width} x {height}, the photo {size[0]} x {size[1]}")
    after, homography, overlap, scope = None, np.eye(3), frame_corners(size), ""
    if edited is not None:
        try:
            meta = json.loads(sample.parts["meta.json"])
            homography = np.array(meta["homography"], np.float64).reshape(3, 3)
            overlap = np.array(meta["overlap"], np.float64).reshape(-1, 2)
            scope, edited_size = str(meta["scope"]), (meta["edited_height"], meta["edited_width"])
            after = decode(edited, _MAX_PIXELS)
        except (ValueError, KeyError, TypeError):  # the mask can be judged all the same
            edited_size = None
        if after is not None and after.shape[:2] != edited_size:
            after = None
    return sample_view(image, after, homography, overlap, mask, scope, profile.mask, profile.overlays.tile_px)
