"""Columns of the store's parquet tables, and functions to write and read them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

from .hashed_files import hashing_writer
from .store import FileInfo, Store

REJECTS_COLUMNS = {"manifest": str, "line": int, "reason": str, "output_image": str}
PAIRS_COLUMNS = {
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
ALIGNED_COLUMNS = {
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
MASKS_COLUMNS = {
    "key": str,
    "verdict": str,
    "is_global": bool,
    "area": float,
    "components": int,
    "confidence": float,
    "noise": float,
    "reason": str,
}
SHARDS_COLUMNS = {
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

RENAMED_COLUMNS = {"may_pass": "retryable", "origins": "candidates"}
"""Column names in tables of earlier versions → names that `read_table` returns."""

_BATCH_ROWS = 4096


def with_current_names(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row, possibly of an earlier version, with the current column names."""
    return {RENAMED_COLUMNS.get(name, name): value for name, value in row.items()}


def write_table(
    store: Store,
    name: str,
    columns: Mapping[str, type],
    rows: Iterable[Mapping[str, Any]],
    metadata: Mapping[str, str] | None = None,
) -> FileInfo:
    """Write rows in the given order as parquet; a missing value is null.

    `list` columns hold lists of float64, `list[str]` and `list[int]` columns lists of strings and integers.
    `metadata` is stored in the parquet schema; `read_metadata` returns it.
    """
    remaining = iter(rows)
    batches = iter(lambda: list(islice(remaining, _BATCH_ROWS)), [])
    columnar = ({column: [row.get(column) for row in batch] for column in columns} for batch in batches)
    return write_columns(store, name, columns, columnar, metadata)


def write_columns(
    store: Store,
    name: str,
    columns: Mapping[str, type],
    batches: Iterable[Mapping[str, Sequence[Any]]],
    metadata: Mapping[str, str] | None = None,
) -> FileInfo:
    """Do the same as `write_table` for batches of rows, each a mapping of column names to values."""
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
    fields = [pa.field(column, types[kind]) for column, kind in columns.items()]
    schema = pa.schema(fields, dict(metadata or {}))
    with (
        hashing_writer(store, name) as file,
        pq.ParquetWriter(pa.PythonFile(file, mode="w"), schema, compression="zstd") as writer,
    ):
        for batch in batches:
            writer.write_table(pa.Table.from_pydict(batch, schema))
    return file.info


def read_table(store: Store, name: str) -> list[dict[str, Any]]:
    """Return all rows of a table. Raises MissingObject."""
    import pyarrow.parquet as pq

    with store.local_path(name) as path:
        table = pq.read_table(path)
    columns = [RENAMED_COLUMNS.get(column, column) for column in table.column_names]
    rows: list[dict[str, Any]] = table.rename_columns(columns).to_pylist()
    return rows


def read_metadata(store: Store, name: str) -> dict[str, str]:
    """Return the metadata of a table. Raises MissingObject."""
    import pyarrow.parquet as pq

    with store.local_path(name) as path:
        metadata = pq.read_schema(path).metadata or {}
    return {key.decode(): value.decode() for key, value in metadata.items()}


def by_key(rows: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the rows as a mapping from their `key`."""
    return {row["key"]: row for row in rows}


def reason_class(reason: str) -> str:
    """Return the class of a reason, to count by: the text before its particulars (`: …`).

    The prefix `input: ` or `edited: ` belongs to the class.
    """
    part, separator, rest = reason.partition(": ")
    if part in ("input", "edited") and separator:
        return f"{part}: {rest.partition(': ')[0]}"
    return part
