from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bananagrams_assets.config import SampleSettings
from bananagrams_assets.sample.sample_folder import make_sample

SMALL = SampleSettings(pairs=48, side_px=160)


@dataclass(frozen=True)
class MadeSample:
    folder: Path
    statistics: dict[str, Any]
    log: list[str]


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> MadeSample:
    """A small sample with three pairs per packaged photo."""
    folder = tmp_path_factory.mktemp("sample")
    log: list[str] = []
    statistics = make_sample(folder, SMALL, log=log.append, workers=2)
    return MadeSample(folder, statistics, log)
