"""The parquet tables of the store: their columns, and how they are written and read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

from .files import hashing_writer
from .store import FileInfo, Store

MANIFEST = {
    "key": str,
    "kind": str,
    "turn": int,
    "source_id": str,
    "split": str,
    "shard": str,
    "edit_type": str,
    "category": str,
    "scope": str,
    "text": str,
    "summary": str,
    "input_url": str,
    "output_url": str,
    "output_image": str,
    "local_input": str,
    "local_output": str,
    "line": int,
    "manifest": str,
    "attribution": str,
    "rotation": int,
    "input_candidates": list[str],
}
REJECTS = {"manifest": str, "line": int, "reason": str, "output_image": str}
PAIRS = {
    "key": str,
    "status": str,
    "reason": str,
    "part": str,
    "retryable": bool,
    "http_status": int,
    "attempts": int,
    "bytes_input": int,
    "bytes_edited": int,
    "sha256_input": str,
    "sha256_edited": str,
    "seconds": float,
    "from_input": str,
    "from_edited": str,
    "width": int,
    "height": int,
    "edited_width": int,
    "edited_height": int,
    "candidates": str,
}
ALIGNED = {
    "key": str,
    "accepted": bool,
    "reason": str,
    "method": str,
    "homography": list,
    "inliers": int,
    "inlier_ratio": float,
    "residual_px": float,
    "overlap": list,
    "overlap_share": float,
    "confidence": float,
    "width": int,
    "height": int,
    "edited_width": int,
    "edited_height": int,
}
MASKS = {
    "key": str,
    "verdict": str,
    "is_global": bool,
    "area": float,
    "components": int,
    "confidence": float,
    "noise": float,
    "reason": str,
}
SHARDS = {
    "key": str,
    "status": str,
    "stage": str,
    "reason": str,
    "edit_type": str,
    "category": str,
    "scope": str,
    "verdict": str,
    "area": float,
    "confidence": float,
    "source_id": str,
    "attribution": str,
    "input_url": str,
    "offset": int,
    "part_bytes": list[int],
    "sha256": list[str],
}

RENAMED = {"may_pass": "retryable", "origins": "candidates"}
"""Column names of tables that earlier versions wrote, and the names that readers see."""

_BATCH = 4096


def write_table(
    store: Store,
    name: str,
    columns: Mapping[str, type],
    rows: Iterable[Mapping[str, Any]],
    notes: Mapping[str, str] | None = None,
) -> FileInfo:
    """Write rows, in the order given, as parquet; what a row lacks is null.

    `list` columns hold lists of float64, `list[str]` and `list[int]` columns lists of strings and integers.
    `notes` are kept with the schema, see `read_notes`.
    """
    remaining = iter(rows)
    batches = iter(lambda: list(islice(remaining, _BATCH)), [])
    columnar = ({column: [row.get(column) for row in batch] for column in columns} for batch in batches)
    return write_columns(store, name, columns, columnar, notes)


def write_columns(
    store: Store,
    name: str,
    columns: Mapping[str, type],
    batches: Iterable[Mapping[str, Sequence[Any]]],
    notes: Mapping[str, str] | None = None,
) -> FileInfo:
    """As `write_table`, of batches of rows that are given by column."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {
        str: pa.string(),
        int: pa.int64(),
        float: pa.float64(),
        bool: pa.bool_(),
        list: pa.list_(pa.float64()),
        list[str]: pa.list_(pa.string()),
        list[int]: pa.list_(pa.int64()),
    }
    schema = pa.schema([pa.field(column, types[kind]) for column, kind in columns.items()], dict(notes or {}))
    with (
        hashing_writer(store, name) as file,
        pq.ParquetWriter(pa.PythonFile(file, mode="w"), schema, compression="zstd") as writer,
    ):
        for batch in batches:
            writer.write_table(pa.Table.from_pydict(batch, schema))
    return file.info


def read_table(store: Store, name: str) -> list[dict[str, Any]]:
    """All rows of a shard's table. Raises MissingObject."""
    import pyarrow.parquet as pq

    with store.local_path(name) as path:
        table = pq.read_table(path)
    columns = [RENAMED.get(column, column) for column in table.column_names]
    rows: list[dict[str, Any]] = table.rename_columns(columns).to_pylist()
    return rows


def read_notes(store: Store, name: str) -> dict[str, str]:
    """The notes of a table. Raises MissingObject."""
    import pyarrow.parquet as pq

    with store.local_path(name) as path:
        notes = pq.read_schema(path).metadata or {}
    return {key.decode(): value.decode() for key, value in notes.items()}


def by_key(rows: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Rows by their `key`."""
    return {row["key"]: row for row in rows}


def reason_class(reason: str) -> str:
    """What kind of reason this is, to count by: the words before its particulars (`: …`).

    Which of the two pictures it is about (`input: `, `edited: `) is no particular.
    """
    part, separator, rest = reason.partition(": ")
    if part in ("input", "edited") and separator:
        return f"{part}: {rest.partition(': ')[0]}"
    return part
