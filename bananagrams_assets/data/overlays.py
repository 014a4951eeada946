"""The `validation_overlays` stage, and the same for any shard: pages to judge masks by eye."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ..config import OverlaySettings, Profile
from ..vision.align import warp
from ..vision.geometry import resizing
from ..vision.images import RGB, PictureError, decode, decode_mask, encode_jpeg
from ..vision.mask import edit_mask
from ..vision.overlay import preview_jpeg, sheet, strip, tinted
from ..vision.page import PageRow, render_page
from . import layout
from .masks import with_masks
from .pairs import decode_pair
from .product import FileInfo, Product, Say, write_file
from .samples import Sample, SampleError, read_folder, read_samples
from .store import LocalStore, Store
from .summary import PREVIEW_BYTES, PREVIEW_PAIRS, side_by_side
from .tables import by_key, read_table

REJECTED = "rejected"
"""The verdict on the page of a record that gave no mask."""

NO_PICTURE = "none"
_MAX_PIXELS = 2**28
"""Of a picture in a dataset shard, which has passed the limit of its own profile."""


def draw_overlays(store: Store, profile: Profile, shard: str, say: Say) -> Product:
    """Write `overlays/<shard>/`: a strip a sample, a contact sheet, and the page that shows them.

    Samples come least confident first, `overlays.max_samples` of them; then every record that was lost,
    with its reason. Raises StoreError, SampleError.
    """
    records = by_key(read_table(store, layout.manifest_table(shard)))
    lost = _lost(store, shard, records)
    made = {row["key"]: row for row in read_table(store, layout.masks_table(shard)) if row["verdict"]}
    wanted = _least_confident(made, profile.overlays.max_samples)
    rejected = sorted(lost)
    drawing = _Drawing(store, shard, profile.overlays, [*wanted, *rejected])
    aligned = by_key(read_table(store, layout.aligned_table(shard)))
    to_draw = {*wanted, *rejected[: profile.overlays.max_samples]}
    with store.open(layout.pairs_tar(shard)) as pairs, store.open(layout.masks_tar(shard)) as masks:
        for pair, mask in with_masks(read_samples(pairs), read_samples(masks)):
            if pair.key not in to_draw or pair.key not in aligned:
                continue
            try:
                drawing.add(pair.key, _strip(pair, mask, aligned[pair.key], records[pair.key], profile))
            except (PictureError, cv2.error, np.linalg.LinAlgError) as error:
                lost.setdefault(pair.key, str(error))
    rows = [
        _page_row(records[key], made.get(key), lost.get(key), drawing.link(key))
        for key in (*wanted, *rejected)
    ]
    captions = {row.key: [row.instruction] for row in rows}
    return drawing.finish(f"{shard}: edit masks", rows, captions, len(made))


def draw_overlays_of(path: Path, output: Path, settings: OverlaySettings) -> Path:
    """Draw any dataset shard, a tar or an extracted folder, into the folder `output`; returns the page.

    All that such a shard knows is the photograph and the mask over it. Samples come least confident
    first. A sample that cannot be drawn is on the page with its reason. Raises SampleError for what is
    no shard, StoreError, OSError.
    """
    rows: dict[str, dict[str, Any]] = {}
    with _samples(path) as samples:
        for sample in samples:
            rows[sample.key] = _told(sample)
    wanted = _least_confident(rows, settings.max_samples)
    drawing = _Drawing(LocalStore(output), "", settings, wanted)
    with _samples(path) as samples:
        for sample in samples:
            if sample.key in drawing.order:
                try:
                    drawing.add(sample.key, _photo_and_mask(sample, settings.tile_px))
                except PictureError as error:
                    rows[sample.key].update(verdict=REJECTED, instruction=str(error))
    page_rows = [PageRow(key=key, picture=drawing.link(key), **rows[key]) for key in wanted]
    captions = {row.key: [row.instruction] for row in page_rows}
    drawing.finish(f"{path.name}: edit masks", page_rows, captions, len(wanted))
    return output / "index.html"


class _Drawing:
    """The pictures of one page, written as they come; the first ones are kept for the contact sheet."""

    def __init__(self, store: Store, shard: str, settings: OverlaySettings, order: Sequence[str]) -> None:
        self.store, self.settings = store, settings
        self.order = {key: position for position, key in enumerate(order)}
        self.files: dict[str, FileInfo] = {}
        self._root = f"overlays/{shard}/" if shard else ""
        self._sheet: dict[str, RGB] = {}
        self._drawn: set[str] = set()

    def add(self, key: str, picture: RGB) -> None:
        self._drawn.add(key)
        self._write(f"pictures/{key}.jpg", encode_jpeg(picture, self.settings.jpeg_quality))
        if self.order[key] < self.settings.samples_per_sheet:
            self._sheet[key] = picture

    def link(self, key: str) -> str:
        return f"pictures/{key if key in self._drawn else NO_PICTURE}.jpg"

    def finish(
        self, title: str, rows: Sequence[PageRow], captions: dict[str, list[str]], masks: int
    ) -> Product:
        if len(self._drawn) < len(rows):
            blank = np.full((self.settings.tile_px // 4, self.settings.tile_px, 3), 40, np.uint8)
            self._write(f"pictures/{NO_PICTURE}.jpg", encode_jpeg(blank, self.settings.jpeg_quality))
        preview = None
        keys = sorted(self._sheet, key=lambda key: self.order[key])
        if keys:
            whole = sheet([self._sheet[key] for key in keys], [captions[key] for key in keys])
            self._write("sheet.jpg", encode_jpeg(whole, self.settings.jpeg_quality))
            first = keys[:PREVIEW_PAIRS]
            few = sheet([self._sheet[key] for key in first], [captions[key] for key in first])
            preview = preview_jpeg(few, PREVIEW_BYTES)
        self._write("index.html", render_page(title, rows).encode())
        self._delete_others()
        verdicts = [row.verdict for row in rows]
        stats = {
            "masks": masks,
            "drawn": len(self._drawn),
            "rejected": verdicts.count(REJECTED),
            "unsure": sum(row.confidence < 0.5 and row.verdict != REJECTED for row in rows),
        }
        return Product(self.files, stats, preview)

    def _write(self, name: str, data: bytes) -> None:
        self.files[self._root + name] = write_file(self.store, self._root + name, data)

    def _delete_others(self) -> None:
        """Pictures of an earlier drawing, which no page shows any more."""
        for name in self.store.list(f"{self._root}pictures/"):
            if name not in self.files and name.endswith(".jpg"):
                self.store.delete(name)


def _least_confident(rows: dict[str, dict[str, Any]], most: int) -> list[str]:
    return sorted(rows, key=lambda key: (rows[key]["confidence"], key))[:most]


def _lost(store: Store, shard: str, records: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Reason by key of the records that gave no mask."""
    tests: dict[str, Callable[[dict[str, Any]], bool]] = {
        layout.pairs_table(shard): lambda row: row["status"] == "ok",
        layout.aligned_table(shard): lambda row: bool(row["accepted"]),
        layout.masks_table(shard): lambda row: bool(row["verdict"]),
    }
    lost = {}
    for name, passed in tests.items():
        for row in read_table(store, name):
            if row["key"] in records and not passed(row):
                lost[row["key"]] = row["reason"]
    return lost


def _strip(
    pair: Sample, mask_png: bytes | None, aligned: dict[str, Any], record: dict[str, Any], profile: Profile
) -> RGB:
    """The four panels of one pair; for one without a mask the edited picture as a plain resize."""
    before, after = decode_pair(pair, profile.fetch.max_pixels)
    size, edited = (before.shape[1], before.shape[0]), (after.shape[1], after.shape[0])
    if mask_png is None:
        drawn, _ = warp(after, resizing(edited, size), size)
        nothing = np.zeros(before.shape[:2], np.float32)
        return strip(before, drawn, nothing, nothing > 0, profile.overlays.tile_px)
    homography = np.array(aligned["homography"], np.float64).reshape(3, 3)
    overlap = np.array(aligned["overlap"], np.float64).reshape(-1, 2)
    found = edit_mask(before, after, homography, overlap, profile.mask, record["scope"])
    drawn, _ = warp(after, homography, size)
    return strip(before, drawn, found.difference, decode_mask(mask_png), profile.overlays.tile_px)


def _page_row(
    record: dict[str, Any], mask: dict[str, Any] | None, reason: str | None, picture: str
) -> PageRow:
    return PageRow(
        key=record["key"],
        picture=picture,
        instruction=f"{reason} ({record['text']})" if reason else record["text"],
        edit_type=record["edit_type"],
        verdict=mask["verdict"] if mask else REJECTED,
        confidence=mask["confidence"] if mask else 0.0,
        area=mask["area"] if mask else 0.0,
        source=record["attribution"],
        split=record["split"],
    )


@contextmanager
def _samples(path: Path) -> Iterator[Iterator[Sample]]:
    try:
        if path.is_dir():
            yield read_folder(path)
            return
        with path.open("rb") as file:
            yield read_samples(file)
    except SampleError as error:
        raise SampleError(f"{path}: {error}") from error


def _told(sample: Sample) -> dict[str, Any]:
    """What a sample says of itself, as the fields of a page row; unknown where it does not."""
    try:
        meta = json.loads(sample.parts.get("meta.json", b"{}"))
        mask = meta.get("mask", {})
        return {
            "instruction": sample.parts.get("text.txt", b"").decode("utf-8", "replace"),
            "edit_type": str(meta.get("edit_type", "")),
            "verdict": str(mask.get("verdict") or ("global" if mask.get("is_global") else "local")),
            "confidence": float(mask.get("confidence", 0.0)),
            "area": float(mask.get("area", 0.0)),
            "source": str(meta.get("attribution") or meta.get("input_url", "")),
            "split": str(meta.get("split", "")),
        }
    except (ValueError, AttributeError, TypeError) as error:
        unknown = dict.fromkeys(("edit_type", "source", "split"), "")
        return {
            **unknown, "instruction": f"meta.json cannot be read: {error}", "verdict": REJECTED,
            "confidence": 0.0, "area": 0.0,
        }  # fmt: skip


def _photo_and_mask(sample: Sample, tile_px: int) -> RGB:
    photo, mask_png = sample.part("input"), sample.parts.get("mask.png")
    if photo is None or mask_png is None:
        raise PictureError(f"no {'input.jpg' if photo is None else 'mask.png'} in this sample")
    picture, mask = decode(photo, _MAX_PIXELS), decode_mask(mask_png)
    if mask.shape != picture.shape[:2]:
        raise PictureError(
            f"the mask is {mask.shape[1]} x {mask.shape[0]}, the photograph {picture.shape[1]} x "
            f"{picture.shape[0]}"
        )
    over = tinted(picture, mask, tile_px)
    small = cv2.resize(picture, (over.shape[1], over.shape[0]), interpolation=cv2.INTER_AREA)
    return side_by_side([np.asarray(small, np.uint8), over])
