"""Records of edited pairs, and rejected manifest lines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, get_type_hints

LOCAL = "local:"
"""Prefix of an input candidate that is a local path."""


class Record(NamedTuple):
    """An edited pair of a manifest, and a row of `manifest/<shard>.parquet`.

    The input is the first of `input_candidates` (`local:<path>` or a URL) that can be read. The edited image
    is `local_output` unless that is empty, else `output_url`. `source_id` identifies the source photo and
    alone determines `split` and `shard`. `turn` counts from 1 in a multi-turn chain and is 0 otherwise.
    `rotation`: see `open_images.Photo`.
    """

    key: str
    kind: str
    turn: int
    source_id: str
    split: str
    shard: str
    edit_type: str
    category: str
    scope: str
    text: str
    summary: str
    input_url: str
    output_url: str
    output_image: str
    local_input: str
    local_output: str
    line: int
    manifest: str
    attribution: str
    rotation: int | None
    input_candidates: list[str]


MANIFEST_COLUMNS: dict[str, type] = {**get_type_hints(Record), "rotation": int}
"""Columns of `manifest/<shard>.parquet`, in order."""


@dataclass(frozen=True, slots=True)
class Reject:
    """A manifest line, or one turn of it, without a record. `reason` is `<kind>: <particulars>`."""

    manifest: str
    line: int
    reason: str
    output_image: str = ""
