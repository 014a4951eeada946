"""The metadata that the Dagster UI shows for a finished partition."""

import base64
from collections.abc import Iterable, Mapping
from typing import Any

import dagster as dg

from ..stages.build import Outcome
from ..stages.receipts import read_preview
from ..storage.store import Store


def describe(store: Store, outcome: Outcome) -> dict[str, Any]:
    """Return the reasons, statistics, files and preview image of one finished partition as metadata."""
    receipt = outcome.receipt
    metadata: dict[str, Any] = {
        "built_because": "; ".join(outcome.reasons[:5]) or "up to date, nothing to do",
        **{name: figure(value) for name, value in receipt.stats.items()},
    }
    files = [
        (name, info) for name, info in receipt.files.items() if name.endswith((".tar", ".parquet", ".html"))
    ]
    for name, info in files[:4]:
        metadata[name.rsplit(".", 1)[-1]] = dg.MetadataValue.path(store.describe(name))
        metadata[f"{name.rsplit('.', 1)[-1]}_bytes"] = info.bytes
    if url := receipt.stats.get("mlflow_run"):
        metadata["mlflow_run"] = dg.MetadataValue.url(url)
    if preview := read_preview(store, receipt.asset, receipt.partition):
        image = base64.b64encode(preview).decode()
        metadata["preview"] = dg.MetadataValue.md(f"![preview](data:image/jpeg;base64,{image})")
    return metadata


def figure(value: Any) -> Any:
    """Return a number or text unchanged, counts and histograms over 0..1 as a table with bars, else JSON."""
    if isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list) and value and _all_numbers(value):
        value = {f"{i / len(value):.1f} to {(i + 1) / len(value):.1f}": n for i, n in enumerate(value)}
    if isinstance(value, Mapping) and value and _all_numbers(value.values()):
        largest = max(map(abs, value.values())) or 1
        rows = [f"| {name} | {n:g} | {'█' * round(20 * abs(n) / largest)} |" for name, n in value.items()]
        return dg.MetadataValue.md("\n".join(["| | | |", "|---|--:|---|", *rows]))
    return dg.MetadataValue.json(value)


def _all_numbers(values: Iterable[Any]) -> bool:
    return all(isinstance(value, int | float) for value in values)
