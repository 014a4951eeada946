"""Train the mask network: `python -m bananagrams_assets.learn.train --job JOB.json`, alone or under torchrun.

The job file (see launch.write_job) names profile, store, MLflow run and the checkpoint to go on from.
Read `train` from top to bottom: data, network, the loop, and what is done with the result.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..config import TrainSettings
from ..progress import Log
from ..storage import paths
from ..storage.open_store import open_store
from ..storage.store import StoreError
from . import checkpoint, launch, registry, report
from .dataset import Batch, Split, Steps, TrainingSet, loader, open_split
from .distributed import (
    Job,
    Place,
    Stopped,
    TrainingError,
    join,
    keep_freed_memory,
    listen_for_stop,
    parallel,
    read_job,
)
from .evaluate import DevScorer
from .losses import mask_loss
from .network import MaskNet
from .optimizer import Average, autocast_precision, compiles, make_optimizer, rate_factor, total_steps
from .predict import make_predictor
from .publish import publish, sections

PICTURES = 20
"""Sheets of dev predictions that a training logs at most."""


def train(job: Job, place: Place, log: Log) -> dict[str, Any] | None:
    """Run the job. On rank 0 returns what was written to model.json, elsewhere None.

    Raises DatasetError, WeightsError, CheckpointError, TrainingError and, after SIGTERM or SIGINT, Stopped.
    """
    settings, started = job.profile.train, time.monotonic()
    check_shares(settings, place)
    store = open_store(job.store)
    with ExitStack() as stack:
        stack.enter_context(memory_errors_explained(settings, place))
        train_split = stack.enter_context(open_split(store, "train")).select(settings)
        dev_split = stack.enter_context(open_split(store, "dev"))
        check_split(train_split)
        total = total_steps(len(train_split), settings)
        weigh = partial(sample_weight, settings)
        data = TrainingSet(
            train_split, settings.side_px, settings.augment, settings.seed, not settings.workers, weigh
        )
        dev = DevScorer(dev_split, train_split, settings, place.rank, place.world)

        torch.manual_seed(settings.seed)
        net = MaskNet(job.profile.model, fetch=job.resume is None)
        net.text.cache_bytes = settings.text_cache_mb * 2**20
        net.to(device=place.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = make_optimizer(net, settings)
        average = Average(net, settings.ema_decay) if settings.ema_decay else None
        first, best, best_name = 0, {"step": 0, "dev_iou": -1.0}, ""
        if job.resume:
            state = checkpoint.load(store, job.resume, net, optimizer, average)
            first = state["step"]
            if checkpoint.exists(store, best_beside(job.resume)):
                best_name = best_beside(job.resume)
                found = checkpoint.read_state(store, best_name)
                best = {"step": found["step"], "dev_iou": found["dev_iou"]}
            if first >= total and not (job.goes_on and first == total):
                raise TrainingError(
                    f"{job.resume} has had all its {total} steps: raise train.epochs or train.max_steps"
                )
            for note in differences(state, job, place, train_split.digest):
                log(f"note: not bit-equal to a run without interruption: {note}")
        if compiles(settings, place.device):
            for part in (net.image, net.fusion, net.decoder):
                part.compile()
        model = parallel(net, place)
        precision = autocast_precision(settings, place.device, log)
        run_log: registry.RunLog | None = None
        if place.rank == 0:
            run_log = stack.enter_context(registry.RunLog(job.tracking_uri, job.mlflow_run_id))
            run_log.settings(job.profile, {"dataset": train_split.digest, "devices": place.world})
            for split, use in ((train_split, "training"), (dev_split, "validation")):
                run_log.dataset(split, store.describe(paths.index_json(split.name)), use)
        parameters = sum(parameter.numel() for parameter in net.parameters() if parameter.requires_grad)
        log(
            f"{len(train_split)} training and {len(dev_split)} dev samples; {parameters / 1e6:.1f} M "
            f"parameters; {place.world} x {place.device.type}; steps {first} to {total}"
        )
        folder, name = f"{job.output}/checkpoints", job.mlflow_run_id[:8]
        stop = stack.enter_context(listen_for_stop(place))
        losses: list[tuple[int, float]] = []
        dev_ious: list[tuple[int, float]] = []
        pending: tuple[Tensor, Batch] | None = None
        imaged = 0
        since, since_step = time.monotonic(), first
        loss_sum, loss_count = torch.zeros((), device=place.device), 0

        def save(step: int) -> str:
            where = f"{folder}/{name}-{step:06d}"
            if run_log:  # first, so that there is no checkpoint whose figures are lost
                run_log.flush()
            facts = {"step": step, "best": best, "dataset": train_split.digest, "devices": place.world}
            content = {**facts, **sections(job.profile)}
            checkpoint.save(store, where, net, optimizer, content, average)
            checkpoint.prune(store, folder, name, settings.keep_checkpoints)
            log(f"checkpoint {where}")
            return where

        steps = Steps(
            len(train_split), settings.batch_size, settings.seed, first, total, place.rank, place.world
        )
        share = settings.batch_size // place.world
        pin = place.device.type == "cuda"
        for step, batch in enumerate(loader(data, steps, settings.workers, pin), first + 1):
            # Everything random in a step follows from its number, so that a resumed run needs no state of it.
            torch.manual_seed(
                int(np.random.SeedSequence([settings.seed, step, place.rank]).generate_state(1)[0])
            )
            model.train()
            rate = rate_factor(step - 1, total, settings)
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * group["factor"] * rate
            optimizer.zero_grad(set_to_none=True)
            step_loss = torch.zeros((), device=place.device)
            for number, part in enumerate(batch.parts(settings.accumulate), 1):
                moved = part.to(place.device)
                # Gradients travel between devices once a step, with its last part.
                with nullcontext() if number == settings.accumulate else unsynchronised(model):
                    with torch.autocast(place.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
                        logits = model(moved.images, moved.texts)
                    each = mask_loss(
                        logits, moved.mask / 255, moved.known, settings.bce_weight, settings.dice_weight
                    )
                    loss = (each * moved.weights).sum() / share
                    loss.backward()
                step_loss += loss.detach()
            if settings.clip_norm:
                nn.utils.clip_grad_norm_(net.parameters(), settings.clip_norm)
            optimizer.step()
            if average:
                average.update(step)
            # The loss before this one is looked at, so that a GPU is never waited for.
            if pending:
                check_finite(*pending, step - 1)
            pending = step_loss, batch
            loss_sum, loss_count = loss_sum + step_loss, loss_count + 1

            last = step == total
            evaluates = last or step % settings.evaluate_every_steps == 0
            saves = last or step % settings.checkpoint_every_steps == 0
            if evaluates or saves or stop():
                check_finite(*pending, step)
            if evaluates or step % settings.log_every_steps == 0:
                mean_loss = mean_over_ranks(loss_sum, place) / loss_count
                loss_sum, loss_count = torch.zeros_like(loss_sum), 0
                speed = (step - since_step) / (time.monotonic() - since)
                losses.append((step, mean_loss))
                line = f"step {step}/{total} loss {mean_loss:.3f}"
                numbers = {"loss": mean_loss, "steps_per_s": speed}
                if evaluates:
                    with average.applied() if average else nullcontext():
                        dev_iou = dev.mean_iou(net, precision)
                        if dev_iou > best["dev_iou"]:
                            best, best_name = {"step": step, "dev_iou": dev_iou}, f"{folder}/{name}-best"
                            if place.rank == 0:
                                content = {**best, **sections(job.profile)}
                                checkpoint.save(store, best_name, net, None, content)
                        if run_log and (step * PICTURES // total > imaged or last):
                            imaged = step * PICTURES // total
                            sheet = report.overlay_sheet(make_predictor(net, settings.side_px), dev_split, 8)
                            run_log.image("dev_predictions", sheet, step)
                    dev_ious.append((step, dev_iou))
                    numbers["dev_iou"] = dev_iou
                    line += f" dev mean IoU {dev_iou:.3f} ({dev.baseline_words})"
                if run_log:
                    run_log.metrics({**numbers, "learning_rate": settings.learning_rate * rate}, step)
                log(f"{line} {speed:.2f} it/s")
                since, since_step = time.monotonic(), step
            if place.rank == 0 and stop():
                where = save(step)
                raise Stopped(stop(), step, total, where)
            if place.rank == 0 and saves:
                save(step)
        if place.rank:
            return None
        assert run_log is not None
        checkpoint.load(store, best_name, net)
        if best["step"] != total:
            log(f"the weights of step {best['step']} are the best on dev")
        run_log.file("curves.png", report.curves(losses, dev_ious, max(dev.baselines.values())))
        facts = {
            "steps": total,
            "best_step": int(best["step"]),
            "seconds": round(time.monotonic() - started, 1),
        }
        result = publish(job, store, net, train_split, dev_split, facts, run_log, log)
        checkpoint.remove_other_runs(store, folder, name)
        return result


def check_shares(settings: TrainSettings, place: Place) -> None:
    """Raise TrainingError if a step's samples cannot be shared out evenly."""
    if settings.batch_size % (place.world * settings.accumulate):
        raise TrainingError(
            f"train.batch_size {settings.batch_size} must be a multiple of the {place.world} devices times "
            f"train.accumulate {settings.accumulate}"
        )


def check_split(split: Split) -> None:
    """Raise TrainingError if nothing in the training split could teach where an instruction acts."""
    if not len(split):
        raise TrainingError(
            "no training sample is left: train.min_confidence or train.include_global excludes all"
        )
    if all(split.meta(index)["mask"]["is_global"] for index in range(len(split))):
        raise TrainingError(
            f"all {len(split)} training samples are whole-picture edits, from which a model learns no place: "
            "build a dataset with local edits (source.scopes, source.edit_types)"
        )


def sample_weight(settings: TrainSettings, meta: Mapping[str, Any]) -> float:
    """A sample's weight in the loss, from its meta.json."""
    mask = meta["mask"]
    weight = settings.global_weight if mask["is_global"] else 1.0
    return weight * float(mask["confidence"]) if settings.weigh_confidence else weight


def differences(state: Mapping[str, Any], job: Job, place: Place, dataset: str) -> Iterator[str]:
    """What a resumed run does otherwise than the run that wrote the checkpoint, in words."""
    if state["dataset"] != dataset:
        yield "the checkpoint was trained on another dataset; going on with this one"
    if state.get("devices", place.world) != place.world:
        yield (
            f"{state['devices']} devices wrote the checkpoint, {place.world} go on with the same samples, "
            "whose sums are rounded otherwise"
        )
    before, now = state.get("train", {}), sections(job.profile)["train"]
    for key in sorted(now.keys() & before.keys() - job.profile.train.operational):
        if before[key] != now[key]:
            yield f"train.{key} was {before[key]}, is {now[key]}"


@contextmanager
def memory_errors_explained(settings: TrainSettings, place: Place) -> Iterator[None]:
    """Turn a failed allocation into a TrainingError that says what to lower."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        # On the CPU torch raises a RuntimeError that only its words tell from others.
        if not isinstance(error, torch.OutOfMemoryError | MemoryError) and not re.search(
            r"can't allocate memory|bad_alloc", str(error)
        ):
            raise
        samples = settings.batch_size // (place.world * settings.accumulate)
        raise TrainingError(
            f"out of memory on the {place.device.type} with {samples} samples of {settings.side_px} px at "
            f"once: raise train.accumulate ({settings.accumulate}; a step keeps its samples), or lower "
            f"train.batch_size ({settings.batch_size}) or train.side_px"
        ) from error


def unsynchronised(model: nn.Module) -> AbstractContextManager[None]:
    """The model's gradients stay on this device while the block runs."""
    if isinstance(model, DistributedDataParallel):
        return model.no_sync()
    return nullcontext()


def mean_over_ranks(value: Tensor, place: Place) -> float:
    """The mean over all processes, each of which must call this."""
    if place.world > 1:
        dist.all_reduce(value)
    return value.item() / place.world


def check_finite(loss: Tensor, batch: Batch, step: int) -> None:
    """Raise TrainingError, naming the samples, if the loss of a step is not a number."""
    if not math.isfinite(loss.item()):
        raise TrainingError(
            f"the loss of step {step} is {loss.item()}: lower train.learning_rate or look at its samples: "
            + "; ".join(f"{key} {text[:60]!r}" for key, text in zip(batch.keys, batch.texts, strict=True))
        )


def best_beside(name: str) -> str:
    """`…/1a2b3c4d-000100` → `…/1a2b3c4d-best`."""
    return name.rstrip("/").rpartition("-")[0] + "-best"


def main(arguments: list[str] | None = None) -> int:
    """Train as the job file says; the exit code is 0 only if a model was registered."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--job", required=True)
    file = parser.parse_args(arguments).job
    job = read_job(file)
    launch.stop_with_launcher()
    keep_freed_memory()
    piped = "DAGSTER_PIPES_CONTEXT" in os.environ and int(os.environ.get("RANK", 0)) == 0
    with launch.open_pipes() if piped else nullcontext() as pipes, join() as place:

        def log(line: str) -> None:
            if place.rank == 0:
                print(line, flush=True)
                if pipes is not None:
                    pipes.log.info(line)

        if pipes is not None:
            pipes.report_custom_message({"started": job.mlflow_run_id})
        status = "FAILED"
        try:
            result = train(job, place, log)
            status = "FINISHED"
            if pipes is not None and result is not None:
                pipes.report_custom_message({"finished": job.mlflow_run_id})
        except Stopped as error:
            status = "KILLED"
            log(str(error))
            return 128 + error.number
        except Exception as error:
            if not type(error).__module__.startswith("bananagrams_assets"):
                raise
            # Whoever launched this process shows the reason; a traceback would only hide it.
            print(error, file=sys.stderr, flush=True)
            if not isinstance(error, StoreError):  # that may pass; the others a person has to mend
                launch.write_failure(file, str(error))
            return 1
        finally:
            if place.rank == 0:
                registry.end_run(job.tracking_uri, job.mlflow_run_id, status)
    return 0


if __name__ == "__main__":
    sys.exit(main())
