from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bananagrams_assets.config import SampleSettings
from bananagrams_assets.sample.make import make_sample

SMALL = SampleSettings(pairs=48, side_px=160)


@dataclass(frozen=True)
class Made:
    folder: Path
    report: dict[str, Any]
    said: list[str]


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A small sample: three pairs from each packaged photograph."""
    folder = tmp_path_factory.mktemp("sample")
    said: list[str] = []
    report = make_sample(folder, SMALL, log=said.append, workers=2)
    return Made(folder, report, said)
