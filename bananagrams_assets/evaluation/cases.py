"""Read the pairs of a folder for an evaluation of masks.

A folder is either the output of `bananagrams sample` (`sft.jsonl` and `truth.jsonl`), or has three files with
one name for each pair: `NAME.before.jpg`, `NAME.after.png` (any format that a build reads) and
`NAME.truth.png` (white where edited, with the size of the before image). An optional `NAME.json` has any of
`family`, `strength`, `edit_type`, `text`, `is_global` and `homography` (9 numbers, edited px → before px).
"""

from __future__ import annotations

import glob
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import BananagramsError


class EvaluationError(BananagramsError, ValueError):
    """A folder that cannot be evaluated. The message names the file and the fault."""


@dataclass(frozen=True, eq=False)
class Case:
    """One pair on disk with its metadata; `homography` maps edited px to before px, row by row."""

    name: str
    before: Path
    after: Path
    truth: Path
    family: str = ""
    strength: float | None = None
    edit_type: str = ""
    text: str = ""
    is_global: bool | None = None
    homography: tuple[float, ...] | None = None


def read_cases(folder: Path) -> list[Case]:
    """Return a folder's pairs in order. Raises EvaluationError if there are none or a file is missing."""
    cases = list(_sample_cases(folder) if (folder / "truth.jsonl").is_file() else _named_cases(folder))
    if not cases:
        raise EvaluationError(
            f"{folder} has no pairs: it needs the truth.jsonl that `bananagrams sample` writes, or "
            "NAME.before.*, NAME.after.* and NAME.truth.png"
        )
    for case in cases:
        for path in (case.before, case.after, case.truth):
            if not path.is_file():
                raise EvaluationError(f"{path} is missing")
    return cases


def _sample_cases(folder: Path) -> Iterator[Case]:
    """Yield the pairs that `bananagrams sample` wrote."""
    records = {record["output_image"]: record for record in _read_lines(folder / "sft.jsonl", "output_image")}
    for truth in _read_lines(folder / "truth.jsonl", "output_image"):
        record = records.get(truth["output_image"])
        if record is None or "local_input_image" not in record or "mask" not in truth:
            raise EvaluationError(f"{folder}/truth.jsonl: {truth['output_image']} has no record or no mask")
        yield _case(
            folder / "truth.jsonl",
            Path(truth["output_image"]).stem,
            (folder / record["local_input_image"], folder / truth["output_image"], folder / truth["mask"]),
            {"edit_type": record.get("edit_type", ""), "text": record.get("text", ""), **truth},
        )


def _named_cases(folder: Path) -> Iterator[Case]:
    """Yield the pairs whose files share a name."""
    for before in sorted(folder.rglob("*.before.*")):
        name = before.name.rsplit(".before.", 1)[0]
        after = sorted(before.parent.glob(f"{glob.escape(name)}.after.*"))
        if not after:
            raise EvaluationError(f"{before} has no {name}.after.* beside it")
        metadata_file = before.parent / f"{name}.json"
        metadata: dict[str, Any] = {}
        if metadata_file.is_file():
            metadata = _parse_object(metadata_file.read_text(encoding="utf-8"), str(metadata_file))
        key = (before.parent / name).relative_to(folder).as_posix()
        yield _case(metadata_file, key, (before, after[0], before.parent / f"{name}.truth.png"), metadata)


def _case(source: Path, name: str, paths: tuple[Path, Path, Path], metadata: Mapping[str, Any]) -> Case:
    homography, strength = metadata.get("homography"), metadata.get("strength")
    is_global = metadata.get("is_global")
    try:
        numbers = None if homography is None else tuple(float(value) for value in np.ravel(homography))
        if numbers is not None and (len(numbers) != 9 or not np.isfinite(numbers).all()):
            raise ValueError("homography must be 9 finite numbers")
        if not isinstance(is_global, bool | None):
            raise ValueError("is_global must be true or false")
        return Case(
            name, *paths, str(metadata.get("family", "")), None if strength is None else float(strength),
            str(metadata.get("edit_type", "")), str(metadata.get("text", "")), is_global, numbers,
        )  # fmt: skip
    except (TypeError, ValueError) as error:
        raise EvaluationError(f"{source}: {name}: {error}") from None


def _read_lines(path: Path, required_key: str) -> list[dict[str, Any]]:
    if not path.is_file():
        raise EvaluationError(f"{path} is missing")
    objects = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        content = _parse_object(line, f"{path}, line {number}")
        if required_key not in content:
            raise EvaluationError(f"{path}, line {number}: {required_key} is missing")
        objects.append(content)
    return objects


def _parse_object(text: str, location: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except ValueError as error:
        raise EvaluationError(f"{location}: not JSON ({error})") from None
    if not isinstance(content, dict):
        raise EvaluationError(f"{location}: not a JSON object")
    return content
