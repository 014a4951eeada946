"""Describe a training process without starting one: its job file and its command line.

Nothing here imports torch, so that whoever launches a training need not load it.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from ..config import Profile
from ..profiles import TRACKING_VARIABLE

OUTPUT = "mask_model"
"""Where in the store a training leaves its checkpoints, weights and metrics."""


def default_tracking_uri(store_url: str) -> str:
    """MLFLOW_TRACKING_URI, else a SQLite file in the store's folder (for a bucket: beside DAGSTER_HOME)."""
    if uri := os.environ.get(TRACKING_VARIABLE):
        return uri
    folder = Path(os.environ.get("DAGSTER_HOME", ".bananagrams")) if "://" in store_url else Path(store_url)
    return f"sqlite:///{folder.expanduser().absolute() / 'mlflow.db'}"


def write_job(
    path: Path,
    profile: Profile,
    store_url: str,
    tracking_uri: str,
    mlflow_run_id: str,
    resume: str | None,
    tags: Mapping[str, str],
) -> Path:
    """Write the JSON file that `bananagrams_assets.learn.train` is started with."""
    job = {
        "profile": profile.model_dump(mode="json"),
        "store": store_url,
        "tracking_uri": tracking_uri,
        "mlflow_run_id": mlflow_run_id,
        "resume": resume,
        "output": OUTPUT,
        "tags": dict(tags),
    }
    path.write_text(json.dumps(job, indent=1), encoding="utf-8")
    return path


def failure_file(job: Path) -> Path:
    """Where a training that ends for a reason that a person can mend writes that reason."""
    return job.with_suffix(".failure")


def command(job: Path, processes: int) -> list[str]:
    """`torchrun` for one machine: a process for each device, restarted by nobody but its caller."""
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={processes}",
        "--module",
        "bananagrams_assets.learn.train",
        "--job",
        str(job),
    ]
