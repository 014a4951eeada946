"""Train the mask network: `python -m bananagrams_assets.learn.train --job JOB.json`, alone or under torchrun.

The job file (see job_file.TrainingJob) contains profile, store, MLflow run and the checkpoint to resume from.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch

from ..config import TrainSettings
from ..errors import BananagramsError
from ..progress import Log
from ..storage.open_store import open_store
from ..storage.store import StoreError
from . import launch, tracking
from .dataset import Split, open_split
from .distributed import DistributedContext, catch_stop_signals, distributed_context, retain_freed_memory
from .job_file import TrainingJob, read_job, write_failure
from .training_run import TrainingError, TrainingRun


class TrainingInterrupted(BananagramsError, RuntimeError):
    """SIGTERM or SIGINT ended the training after it had written a checkpoint."""

    def __init__(self, signal_number: int, step: int, total: int, checkpoint: str) -> None:
        name = signal.Signals(signal_number).name
        super().__init__(
            f"stopped by {name} after step {step} of {total}; "
            f"resume with `bananagrams train --resume {checkpoint}`"
        )
        self.signal_number = signal_number


def train(job: TrainingJob, context: DistributedContext, log: Log) -> dict[str, Any] | None:
    """Run a training job. Return the content of model.json on rank 0, None on other ranks.

    Raises DatasetError, WeightsError, CheckpointError, TrainingError and, after SIGTERM or SIGINT,
    TrainingInterrupted.
    """
    settings, started = job.profile.train, time.monotonic()
    check_batch_size(settings, context)
    store = open_store(job.store)
    with ExitStack() as stack:
        stack.enter_context(memory_errors_explained(settings, context))
        train_split = stack.enter_context(open_split(store, "train")).select(settings)
        dev_split = stack.enter_context(open_split(store, "dev"))
        check_split(train_split)
        run = TrainingRun(job, context, store, train_split, dev_split, log)
        if context.rank == 0:
            run.run_log = stack.enter_context(tracking.RunLog(job.tracking_uri, job.mlflow_run_id))
        run.log_inputs()
        received_signal = stack.enter_context(catch_stop_signals(context))
        for step, batch in run.batches():
            run.train_step(step, batch)
            last = step == run.total
            evaluates = last or step % settings.evaluate_every_steps == 0
            saves = last or step % settings.checkpoint_every_steps == 0
            if evaluates or saves or received_signal():
                run.check_loss()
            if evaluates or step % settings.log_every_steps == 0:
                run.log_progress(step, with_evaluation=evaluates)
            if context.rank == 0 and received_signal():
                name = run.save(step)
                raise TrainingInterrupted(received_signal(), step, run.total, name)
            if context.rank == 0 and saves:
                run.save(step)
        return run.publish_best(started) if context.rank == 0 else None


def check_batch_size(settings: TrainSettings, context: DistributedContext) -> None:
    """Raise TrainingError if a batch cannot be divided evenly among devices and micro-batches."""
    if settings.batch_size % (context.world_size * settings.accumulate):
        raise TrainingError(
            f"train.batch_size {settings.batch_size} must be a multiple of the {context.world_size} devices "
            f"times train.accumulate {settings.accumulate}"
        )


def check_split(split: Split) -> None:
    """Raise TrainingError if the training split is empty or has no local edit."""
    if not len(split):
        raise TrainingError(
            "no training sample is left: train.min_confidence or train.include_global excludes all"
        )
    if all(split.meta(index)["mask"]["is_global"] for index in range(len(split))):
        raise TrainingError(
            f"all {len(split)} training samples are whole-image edits, from which a model cannot learn where "
            "an edit acts: build a dataset with local edits (source.scopes, source.edit_types)"
        )


@contextmanager
def memory_errors_explained(settings: TrainSettings, context: DistributedContext) -> Iterator[None]:
    """Convert a failed allocation to a TrainingError that names the settings to lower."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        # On the CPU torch raises a plain RuntimeError, so only its message identifies it.
        if not isinstance(error, torch.OutOfMemoryError | MemoryError) and not re.search(
            r"can't allocate memory|bad_alloc", str(error)
        ):
            raise
        samples = settings.batch_size // (context.world_size * settings.accumulate)
        raise TrainingError(
            f"out of memory on the {context.device.type} with {samples} samples of {settings.side_px} px at "
            f"once: raise train.accumulate ({settings.accumulate}; a step keeps its samples), or lower "
            f"train.batch_size ({settings.batch_size}) or train.side_px"
        ) from error


def main(arguments: list[str] | None = None) -> int:
    """Run the training of a job file; the exit code is 0 only if a model was registered."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--job", required=True)
    file = parser.parse_args(arguments).job
    job = read_job(file)
    launch.stop_when_launcher_exits()
    retain_freed_memory()
    uses_pipes = "DAGSTER_PIPES_CONTEXT" in os.environ and int(os.environ.get("RANK", 0)) == 0
    with launch.open_pipes() if uses_pipes else nullcontext() as pipes, distributed_context() as context:

        def log(line: str) -> None:
            if context.rank == 0:
                print(line, flush=True)
                if pipes is not None:
                    pipes.log.info(line)

        if pipes is not None:
            pipes.report_custom_message({"started": job.mlflow_run_id})
        status = "FAILED"
        try:
            result = train(job, context, log)
            status = "FINISHED"
            if pipes is not None and result is not None:
                pipes.report_custom_message({"finished": job.mlflow_run_id})
        except TrainingInterrupted as error:
            status = "KILLED"
            log(str(error))
            return 128 + error.signal_number
        except BananagramsError as error:
            # The launcher shows this message; a traceback would hide it.
            print(error, file=sys.stderr, flush=True)
            if not isinstance(error, StoreError):  # a retry may fix a StoreError, but no other error
                write_failure(file, str(error))
            return 1
        finally:
            if context.rank == 0:
                tracking.end_run(job.tracking_uri, job.mlflow_run_id, status)
    return 0


if __name__ == "__main__":
    sys.exit(main())
