"""Predict masks for many images from files, folders, tables and shards; write them to a folder or bucket.

An image that cannot be read becomes a failed row and the batch continues. A storage error (full disk,
missing bucket) ends the batch. Each thread holds at most one image at full size.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import BananagramsError
from ..storage.sample_tar import SampleError, read_folder, read_samples
from ..storage.store import Store
from ..vision.images import RGB, SUFFIXES, ImageError, decode, encode_jpeg, encode_png_mask, resize
from ..vision.overlay import mask_overlay
from .predict import Predictor, Probability, encode_soft, from_square, predict_squares

TABLES = (".csv", ".jsonl", ".json")
PHOTO_COLUMNS, TEXT_COLUMNS = ("photo", "image", "local_input_image"), ("instruction", "text")
PREDICTIONS = "predictions.csv"
COLUMNS = ("photo", "instruction", "status", "reason", "width", "height", "area", "mask")
THREADS = 4


class InputError(BananagramsError, ValueError):
    """A source that cannot be read at all; the message names it and the expected content."""


@dataclass(frozen=True)
class Item:
    """An image to predict: its location `photo`, its instruction, and the `name` of its mask.

    `read` returns the bytes of the image file. Raises ImageError or OSError.
    """

    name: str
    photo: str
    instruction: str
    read: Callable[[], bytes]


@dataclass(frozen=True)
class Row:
    """The result for an item: `status` is `ok`, or `failed` with a reason.

    `area` is the masked share of the image, 0..1.
    """

    item: Item
    status: str
    reason: str = ""
    width: int = 0
    height: int = 0
    area: float = 0.0
    mask: str = ""


@dataclass(frozen=True)
class Output:
    """Where and how to write: binary masks, or 8-bit probabilities if `soft`; optionally overlays.

    `threshold` is the lowest probability of a mask pixel; None for the model's own.
    """

    masks: Store
    overlays: Store | None = None
    soft: bool = False
    threshold: float | None = None


def list_items(sources: Sequence[Path], instruction: str | None) -> Iterator[Item]:
    """Yield the items of all sources.

    A source is an image or a folder of images, which use `instruction`; or a table, a shard (a tar of
    dataset samples) or an extracted shard, which contain their own instructions. A table is CSV with a header
    or JSON lines, with the columns `photo` (relative to the table) and `instruction`.
    Raise InputError for any other source, or if an image has no instruction.
    """
    for source in sources:
        if source.is_dir():
            extracted = any(source.glob("*.text.txt"))
            items = _items_from_samples(source) if extracted else _items_from_folder(source, instruction)
        elif source.suffix.lower() == ".tar":
            items = _items_from_samples(source)
        elif source.suffix.lower() in TABLES:
            items = _items_from_table(source)
        elif source.is_file():
            items = iter([_item_from_image(source, source.stem, instruction)])
        else:
            raise InputError(f"{source}: no such file or folder")
        yield from items


def predict_all(
    predictor: Predictor,
    items: Iterable[Item],
    output: Output,
    max_pixels: int,
    on_row: Callable[[Row], None] = lambda row: None,
    batch_size: int = 16,
) -> list[Row]:
    """Predict all items; write masks, overlays and the table PREDICTIONS. Return the failed rows.

    Call `on_row` with each row in order. Raise StoreError if a file cannot be written.
    """
    failed: list[Row] = []
    names: set[str] = set()
    remaining = iter(items)
    with ThreadPoolExecutor(THREADS) as pool, output.masks.create(PREDICTIONS) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
        table = csv.writer(text)
        table.writerow(COLUMNS)
        while batch := [_with_unique_name(item, names) for item in islice(remaining, batch_size)]:
            for row in _predict_batch(predictor, batch, output, max_pixels, pool):
                table.writerow(
                    [row.item.photo, row.item.instruction, row.status, row.reason, row.width or "",
                     row.height or "", f"{row.area:.4f}" if row.status == "ok" else "", row.mask]
                )  # fmt: skip
                if row.status != "ok":
                    failed.append(row)
                on_row(row)
        text.detach()
    return failed


def _item_from_image(path: Path, name: str, instruction: str | None) -> Item:
    if not instruction:
        raise InputError(f"{path}: an image needs an instruction; give it as the last argument")
    return Item(name, str(path), instruction, path.read_bytes)


def _items_from_folder(folder: Path, instruction: str | None) -> Iterator[Item]:
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not files:
        raise InputError(f"{folder}: contains no images ({', '.join(SUFFIXES)})")
    for path in files:
        yield _item_from_image(path, str(path.relative_to(folder).with_suffix("")), instruction)


def _items_from_samples(source: Path) -> Iterator[Item]:
    """Yield the items of a shard: a tar, or a folder that it was extracted to."""
    try:
        with nullcontext() if source.is_dir() else source.open("rb") as file:
            for sample in read_samples(file) if file else read_folder(source):
                image, text = sample.part("input"), sample.part("text")
                complete = image is not None and text is not None
                read = partial(bytes, image) if complete else _failing("the sample has no input or no text")
                instruction = (text or b"").decode(errors="replace")
                yield Item(sample.key, f"{source}:{sample.key}", instruction, read)
    except SampleError as error:
        yield Item(source.stem, str(source), "", _failing(str(error)))


def _items_from_table(path: Path) -> Iterator[Item]:
    for number, row in enumerate(_table_rows(path), start=1):
        if isinstance(row, str):
            yield Item(f"row-{number}", f"{path}:{number}", "", _failing(row))
            continue
        photo = next((str(row[name]) for name in PHOTO_COLUMNS if row.get(name)), "")
        text = next((str(row[name]) for name in TEXT_COLUMNS if row.get(name)), "")
        if not photo or not text:
            columns = f"{' or '.join(PHOTO_COLUMNS)}, and {' or '.join(TEXT_COLUMNS)}"
            yield Item(f"row-{number}", f"{path}:{number}", text, _failing(f"a row needs {columns}"))
            continue
        file = path.parent / photo
        yield Item(file.stem, str(file), text, file.read_bytes)


def _table_rows(path: Path) -> Iterator[Mapping[str, Any] | str]:
    """Yield each row as a mapping from column to value, or the reason why a line is invalid."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.suffix.lower() == ".csv":
                yield from csv.DictReader(file)
                return
            for line in filter(str.strip, file):
                try:
                    content = json.loads(line)
                except ValueError as error:
                    yield f"not JSON: {error}"
                    continue
                yield content if isinstance(content, dict) else "not a JSON object"
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as a table: {error}") from None


def _failing(reason: str) -> Callable[[], bytes]:
    """Return the `read` of an item whose image is known to be unreadable."""

    def read() -> bytes:
        raise ImageError(reason)

    return read


def _with_unique_name(item: Item, names: set[str]) -> Item:
    """Return the item with a name that is valid in a store and not in `names`; add it to `names`."""
    base = "".join(letter if letter.isprintable() and letter != "\\" else "_" for letter in item.name)
    name, number = base, 1
    while name in names:
        number += 1
        name = f"{base}-{number}"
    names.add(name)
    return replace(item, name=name)


class _NetworkInput(NamedTuple):
    """An item's image stretched to the network's input size, and its original size (H, W)."""

    item: Item
    square: RGB
    size: tuple[int, int]


def _predict_batch(
    predictor: Predictor, items: Sequence[Item], output: Output, max_pixels: int, pool: ThreadPoolExecutor
) -> Iterator[Row]:
    """Read, predict and write a batch of items; yield their rows in order."""
    inputs = list(pool.map(lambda item: _read(predictor, item, max_pixels), items))
    images = [image for image in inputs if isinstance(image, _NetworkInput)]
    squares, instructions = [image.square for image in images], [image.item.instruction for image in images]
    planes = predict_squares(predictor, squares, instructions) if images else ()
    rows = pool.map(lambda image, plane: _write(predictor, image, plane, output, max_pixels), images, planes)
    for row in inputs:
        yield next(rows) if isinstance(row, _NetworkInput) else row


def _read(predictor: Predictor, item: Item, max_pixels: int) -> _NetworkInput | Row:
    """Read and decode an item's image; return a failed row if that is impossible."""
    try:
        image = decode(item.read(), max_pixels)
    except (ImageError, OSError) as error:
        return Row(item, "failed", getattr(error, "strerror", None) or str(error))
    square = resize(image, (predictor.side_px, predictor.side_px))
    return _NetworkInput(item, square, (image.shape[0], image.shape[1]))


def _write(
    predictor: Predictor, image: _NetworkInput, plane: Probability, output: Output, max_pixels: int
) -> Row:
    """Write an item's mask and overlay at its original size."""
    item, size = image.item, image.size
    probability = from_square(plane, size)
    threshold = predictor.threshold if output.threshold is None else output.threshold
    mask = np.asarray(probability >= threshold)
    name = f"{item.name}.{'soft' if output.soft else 'mask'}.png"
    data = encode_soft(probability) if output.soft else encode_png_mask(mask, one_bit=False)
    output.masks.write(name, data)
    if output.overlays is not None:
        # Decode again: keeping a batch of full-size images in memory costs more than a second decode.
        overlay = mask_overlay(decode(item.read(), max_pixels), mask, max(size))
        output.overlays.write(f"{item.name}.overlay.jpg", encode_jpeg(overlay, 90))
    return Row(item, "ok", "", size[1], size[0], float(mask.mean()), name)
