"""Masks for many photographs: from files, folders, tables and shards, to a folder or a bucket.

A photograph that cannot be read is a row with its reason and ends nothing; a disk that is full, or a
bucket that is gone, ends it all. No more than one photograph a thread is held at its full size.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import BananagramsError
from ..storage.sample_tar import Sample, SampleError, read_folder, read_samples
from ..storage.store import Store
from ..vision.images import RGB, SUFFIXES, ImageError, decode, encode_jpeg, encode_png_mask
from ..vision.overlay import tinted
from .predict import Predictor, Probability, encode_soft, from_square, predict_squares, to_square

TABLES = (".csv", ".jsonl", ".json")
PHOTO_COLUMNS, TEXT_COLUMNS = ("photo", "image", "local_input_image"), ("instruction", "text")
ROWS = "predictions.csv"
COLUMNS = ("photo", "instruction", "status", "reason", "width", "height", "area", "mask")
THREADS = 4


class InputError(BananagramsError, ValueError):
    """A source that cannot be read at all; the message names it and what is expected."""


@dataclass(frozen=True)
class Item:
    """A photograph to be read, its instruction, and what its mask is to be called.

    `fault` is why it cannot be, where that is known without reading it.
    """

    name: str
    photo: str
    instruction: str
    read: Callable[[], bytes]
    fault: str = ""


@dataclass(frozen=True)
class Row:
    """What became of an item: `status` is `ok` or `failed` with a reason; `area` is the mask's share."""

    item: Item
    status: str
    reason: str = ""
    width: int = 0
    height: int = 0
    area: float = 0.0
    mask: str = ""


@dataclass(frozen=True)
class Output:
    """What is written: masks, or 8-bit probabilities with `soft`; overlays into a store of their own."""

    masks: Store
    overlays: Store | None = None
    soft: bool = False
    threshold: float | None = None
    """Least probability of a mask pixel; None: the model's own."""


def list_items(sources: Sequence[Path], instruction: str | None) -> Iterator[Item]:
    """What is to be predicted: pictures and folders with `instruction`, tables and shards with their own.

    A table is a CSV file with a header, or JSON lines, with the columns `photo` (relative to the table)
    and `instruction`. A shard is a tar of dataset samples; a folder may be one that was extracted. Raises
    InputError for a source that is none of these, or needs an instruction where there is none.
    """
    for source in sources:
        if source.is_dir():
            samples = any(source.glob("*.text.txt"))
            found = _of_samples(source, read_folder(source)) if samples else _of_folder(source, instruction)
        elif source.suffix.lower() == ".tar":
            found = _of_shard(source)
        elif source.suffix.lower() in TABLES:
            found = _of_table(source)
        elif source.is_file():
            found = iter([_of_image(source, source.stem, instruction)])
        else:
            raise InputError(f"{source}: no such file or folder")
        yield from found


def predict_all(
    predictor: Predictor,
    items: Iterable[Item],
    output: Output,
    max_pixels: int,
    done: Callable[[Row], None] = lambda row: None,
    batch_size: int = 16,
) -> list[Row]:
    """Predict every item, write its mask and overlay, and a table of all rows; returns the failed rows.

    `done` is called with each row in order. Raises StoreError where a mask cannot be written.
    """
    failed: list[Row] = []
    taken: set[str] = set()
    waiting = iter(items)
    with ThreadPoolExecutor(THREADS) as pool, output.masks.create(ROWS) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
        table = csv.writer(text)
        table.writerow(COLUMNS)
        while group := [_named(item, taken) for item in islice(waiting, batch_size)]:
            images = list(pool.map(lambda item: _read(predictor, item, max_pixels), group))
            good = [number for number, found in enumerate(images) if not isinstance(found, Row)]
            planes: dict[int, Probability] = {}
            if good:
                squares = [images[number][0] for number in good]  # type: ignore[index]
                found = predict_squares(predictor, squares, [group[number].instruction for number in good])
                planes = dict(zip(good, found, strict=True))

            def finish(
                number: int, group: list[Item] = group, images: Any = images, planes: Any = planes
            ) -> Row:
                if number not in planes:
                    row: Row = images[number]
                    return row
                return _write(predictor, group[number], planes[number], images[number][1], output, max_pixels)

            for row in pool.map(finish, range(len(group))):
                table.writerow(
                    [row.item.photo, row.item.instruction, row.status, row.reason, row.width or "",
                     row.height or "", f"{row.area:.4f}" if row.status == "ok" else "", row.mask]
                )  # fmt: skip
                if row.status != "ok":
                    failed.append(row)
                done(row)
        text.detach()
    return failed


def _of_image(path: Path, name: str, instruction: str | None) -> Item:
    if not instruction:
        raise InputError(f"{path}: a photograph needs an instruction, as the last argument")
    return Item(name, str(path), instruction, path.read_bytes)


def _of_folder(folder: Path, instruction: str | None) -> Iterator[Item]:
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not files:
        raise InputError(f"{folder}: holds no pictures ({', '.join(SUFFIXES)})")
    for path in files:
        yield _of_image(path, str(path.relative_to(folder).with_suffix("")), instruction)


def _of_shard(path: Path) -> Iterator[Item]:
    with path.open("rb") as file:
        yield from _of_samples(path, read_samples(file))


def _of_samples(source: Path, samples: Iterator[Sample]) -> Iterator[Item]:
    try:
        for sample in samples:
            where = f"{source}:{sample.key}"
            image, text = sample.part("input"), sample.part("text")
            fault = "" if image is not None and text is not None else "it has no input or no text"
            yield Item(sample.key, where, (text or b"").decode(errors="replace"), _bytes(image or b""), fault)
    except SampleError as error:
        yield Item(source.stem, str(source), "", _bytes(b""), str(error))


def _of_table(path: Path) -> Iterator[Item]:
    for number, row in enumerate(_rows(path), start=1):
        if isinstance(row, str):
            yield Item(f"row-{number}", f"{path}:{number}", "", _bytes(b""), row)
            continue
        photo = next((str(row[name]) for name in PHOTO_COLUMNS if row.get(name)), "")
        text = next((str(row[name]) for name in TEXT_COLUMNS if row.get(name)), "")
        if not photo or not text:
            columns = f"{' or '.join(PHOTO_COLUMNS)}, and {' or '.join(TEXT_COLUMNS)}"
            yield Item(f"row-{number}", f"{path}:{number}", text, _bytes(b""), f"a row needs {columns}")
            continue
        file = path.parent / photo
        yield Item(file.stem, str(file), text, file.read_bytes)


def _rows(path: Path) -> Iterator[Mapping[str, Any] | str]:
    """Rows by column, or why a line is none."""
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


def _bytes(data: bytes) -> Callable[[], bytes]:
    return lambda: data


def _named(item: Item, taken: set[str]) -> Item:
    """The item with a name that is fit for a store and that no item before it has."""
    base = "".join(letter if letter.isprintable() and letter != "\\" else "_" for letter in item.name)
    name, number = base, 1
    while name in taken:
        number += 1
        name = f"{base}-{number}"
    taken.add(name)
    return Item(name, item.photo, item.instruction, item.read, item.fault)


def _read(predictor: Predictor, item: Item, max_pixels: int) -> tuple[RGB, tuple[int, int]] | Row:
    """The picture at the network's size, and its own (H, W); or the row that says why not."""
    if item.fault:
        return Row(item, "failed", item.fault)
    try:
        image = decode(item.read(), max_pixels)
    except (ImageError, OSError) as error:
        return Row(item, "failed", getattr(error, "strerror", None) or str(error))
    return to_square(predictor, image), (image.shape[0], image.shape[1])


def _write(
    predictor: Predictor,
    item: Item,
    plane: Probability,
    size: tuple[int, int],
    output: Output,
    max_pixels: int,
) -> Row:
    probability = from_square(plane, size)
    threshold = predictor.threshold if output.threshold is None else output.threshold
    mask = np.asarray(probability >= threshold)
    name = f"{item.name}.{'soft' if output.soft else 'mask'}.png"
    output.masks.write(
        name, encode_soft(probability) if output.soft else encode_png_mask(mask, one_bit=False)
    )
    if output.overlays is not None:
        # Read anew: holding a batch of photographs at full size would cost more than decoding one twice.
        image = decode(item.read(), max_pixels)
        output.overlays.write(f"{item.name}.overlay.jpg", encode_jpeg(tinted(image, mask, max(size)), 90))
    return Row(item, "ok", "", size[1], size[0], float(mask.mean()), name)
