"""The training job: its file, and the errors that end a training."""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import Profile
from ..errors import BananagramsError
from ..profiles import validate
from ..stages.access import restricted_settings
from .job_file import read_job_text


class TrainingError(BananagramsError, RuntimeError):
    """A training cannot start or continue; the message gives the reason and the remedy."""


class TrainingInterrupted(BananagramsError, RuntimeError):
    """SIGTERM or SIGINT ended the training after it had written a checkpoint."""

    def __init__(self, signal_number: int, step: int, total: int, checkpoint: str) -> None:
        name = signal.Signals(signal_number).name
        super().__init__(
            f"stopped by {name} after step {step} of {total}; "
            f"resume with `bananagrams train --resume {checkpoint}`"
        )
        self.signal_number = signal_number


@dataclass(frozen=True)
class TrainingJob:
    """Content of a job file, see job_file.write_job.

    `resume` is the checkpoint to resume from. `continues_own_run`: the checkpoint is from an earlier attempt
    of the same MLflow run, which may have completed all its steps, so that only publishing is left.
    `profile` gives access to the settings that the stage `mask_model` declares alone; `document` is the whole
    profile as JSON values, to be recorded with the run.
    """

    profile: Profile
    document: Mapping[str, Any]
    store: str
    tracking_uri: str
    mlflow_run_id: str
    resume: str | None
    output: str
    tags: Mapping[str, str]
    continues_own_run: bool = False


def read_job(file: Path | str) -> TrainingJob:
    """Read a job file from a path or an S3 URL."""
    content = json.loads(read_job_text(file))
    document, settings = content.pop("profile"), content.pop("settings")
    profile = restricted_settings(validate(document, str(file)), "the training", settings)
    return TrainingJob(
        profile=profile, document=document, continues_own_run=content.pop("goes_on", False), **content
    )
