"""Train the mask network: `python -m bananagrams_assets.learn.train --job JOB.json`, alone or under torchrun.

The job file (see launch.write_job) names profile, store, MLflow run and the checkpoint to go on from.
Read `train` from top to bottom: data, network, the loop, and what is done with the result.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..data import layout
from ..data.store import StoreError, open_store
from . import checkpoint, launch, registry, report
from .dataset import Batch, Steps, TrainingSet, loader, open_split
from .evaluate import DevScorer
from .losses import mask_loss
from .network import MaskNet
from .optimize import autocast_precision, make_optimizer, rate_factor, total_steps
from .predict import make_predictor
from .process import Job, Place, Stopped, join, listen_for_stop, parallel, read_job
from .publish import publish, sections

Say = Callable[[str], None]
PICTURES = 20
"""Sheets of dev predictions that a training logs at most."""


class TrainingError(RuntimeError):
    """A training that cannot start or go on; the message says why and what to do."""


def train(job: Job, place: Place, say: Say) -> dict[str, Any] | None:
    """Run the job. On rank 0 returns what was written to model.json, elsewhere None.

    Raises DatasetError, WeightsError, CheckpointError, TrainingError and, after SIGTERM or SIGINT, Stopped.
    """
    settings, started = job.profile.train, time.monotonic()
    if settings.batch_size % place.world:
        raise TrainingError(
            f"train.batch_size {settings.batch_size} must be a multiple of the {place.world} devices"
        )
    store = open_store(job.store)
    with ExitStack() as stack:
        train_split = stack.enter_context(open_split(store, "train")).select(settings)
        dev_split = stack.enter_context(open_split(store, "dev"))
        if not len(train_split):
            raise TrainingError(
                "no training sample is left: train.min_confidence or train.include_global excludes all"
            )
        total = total_steps(len(train_split), settings)
        data = TrainingSet(
            train_split, settings.side_px, settings.augment, settings.seed, not settings.workers
        )
        dev = DevScorer(dev_split, train_split, settings, place.rank, place.world)

        torch.manual_seed(settings.seed)
        net = MaskNet(job.profile.model, fetch=job.resume is None)
        net.to(device=place.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = make_optimizer(net, settings)
        first, best, best_name = 0, {"step": 0, "dev_iou": -1.0}, ""
        if job.resume:
            state = checkpoint.load(store, job.resume, net, optimizer)
            first = state["step"]
            if checkpoint.exists(store, best_beside(job.resume)):
                best, best_name = state["best"], best_beside(job.resume)
            if first >= total and not (job.goes_on and first == total):
                raise TrainingError(
                    f"{job.resume} has had all its {total} steps: raise train.epochs or train.max_steps"
                )
            if state["dataset"] != train_split.digest:
                say(f"note: {job.resume} was trained on another dataset; going on with this one")
        model = parallel(net, place)
        precision = autocast_precision(settings, place.device, say)
        log: registry.RunLog | None = None
        if place.rank == 0:
            log = stack.enter_context(registry.RunLog(job.tracking_uri, job.mlflow_run_id))
            log.settings(job.profile, {"dataset": train_split.digest, "devices": place.world})
            for split, use in ((train_split, "training"), (dev_split, "validation")):
                log.dataset(split, store.describe(layout.index_json(split.name)), use)
        parameters = sum(parameter.numel() for parameter in net.parameters() if parameter.requires_grad)
        say(
            f"{len(train_split)} training and {len(dev_split)} dev samples; {parameters / 1e6:.1f} M "
            f"parameters; {place.world} x {place.device.type}; steps {first} to {total}"
        )
        folder, name = f"{job.output}/checkpoints", job.mlflow_run_id[:8]
        stop = stack.enter_context(listen_for_stop(place))
        losses: list[tuple[int, float]] = []
        dev_ious: list[tuple[int, float]] = []
        pending: tuple[Tensor, Batch] | None = None
        pictured = 0
        since, since_step = time.monotonic(), first
        loss_sum, loss_count = torch.zeros((), device=place.device), 0

        def save(step: int) -> str:
            where = f"{folder}/{name}-{step:06d}"
            facts = {"step": step, "best": best, "dataset": train_split.digest}
            checkpoint.save(store, where, net, optimizer, {**facts, **sections(job.profile)})
            checkpoint.prune(store, folder, name, settings.keep_checkpoints)
            say(f"checkpoint {where}")
            if log:
                log.flush()
            return where

        steps = Steps(
            len(train_split), settings.batch_size, settings.seed, first, total, place.rank, place.world
        )
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
            moved = batch.to(place.device)
            with torch.autocast(place.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
                logits = model(moved.pictures, moved.texts)
            loss = mask_loss(logits, moved.mask, moved.known, settings.bce_weight, settings.dice_weight)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            if settings.clip_norm:
                nn.utils.clip_grad_norm_(net.parameters(), settings.clip_norm)
            optimizer.step()
            # The loss before this one is looked at, so that a GPU is never waited for.
            if pending:
                check_finite(*pending, step - 1)
            pending = loss.detach(), batch
            loss_sum, loss_count = loss_sum + pending[0], loss_count + 1

            last = step == total
            evaluates = last or step % settings.evaluate_every_steps == 0
            saves = last or step % settings.checkpoint_every_steps == 0
            if evaluates or saves or stop():
                check_finite(*pending, step)
            if evaluates or step % settings.log_every_steps == 0:
                mean_loss = float(loss_sum) / loss_count
                loss_sum, loss_count = torch.zeros_like(loss_sum), 0
                speed = (step - since_step) / (time.monotonic() - since)
                losses.append((step, mean_loss))
                line = f"step {step}/{total} loss {mean_loss:.3f}"
                numbers = {"loss": mean_loss, "steps_per_s": speed}
                if evaluates:
                    dev_iou = dev.mean_iou(net, precision)
                    dev_ious.append((step, dev_iou))
                    numbers["dev_iou"] = dev_iou
                    line += f" dev mean IoU {dev_iou:.3f} ({dev.baseline_words})"
                    if dev_iou > best["dev_iou"]:
                        best, best_name = {"step": step, "dev_iou": dev_iou}, f"{folder}/{name}-best"
                        if place.rank == 0:
                            checkpoint.save(store, best_name, net, None, {**best, **sections(job.profile)})
                    if log and (step * PICTURES // total > pictured or last):
                        pictured = step * PICTURES // total
                        sheet = report.overlay_sheet(make_predictor(net, settings.side_px), dev_split, 8)
                        log.picture("dev_predictions", sheet, step)
                if log:
                    log.metrics({**numbers, "learning_rate": settings.learning_rate * rate}, step)
                say(f"{line} {speed:.2f} it/s")
                since, since_step = time.monotonic(), step
            if place.rank == 0 and stop():
                where = save(step)
                raise Stopped(stop(), step, total, where)
            if place.rank == 0 and saves:
                save(step)
        if place.rank:
            return None
        assert log is not None
        if best["step"] != total:
            checkpoint.load(store, best_name, net)
            say(f"the weights of step {best['step']} are the best on dev")
        log.file("curves.png", report.curves(losses, dev_ious, max(dev.baselines.values())))
        facts = {
            "steps": total,
            "best_step": int(best["step"]),
            "seconds": round(time.monotonic() - started, 1),
        }
        result = publish(job, store, net, train_split, dev_split, facts, log, say)
        checkpoint.remove_other_runs(store, folder, name)
        return result


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
    piped = "DAGSTER_PIPES_CONTEXT" in os.environ and int(os.environ.get("RANK", 0)) == 0
    with launch.open_pipes() if piped else nullcontext() as pipes, join() as place:

        def say(line: str) -> None:
            if place.rank == 0:
                print(line, flush=True)
                if pipes is not None:
                    pipes.log.info(line)

        if pipes is not None:
            pipes.report_custom_message({"started": job.mlflow_run_id})
        status = "FAILED"
        try:
            result = train(job, place, say)
            status = "FINISHED"
            if pipes is not None and result is not None:
                pipes.report_custom_message({"finished": job.mlflow_run_id})
        except Stopped as error:
            status = "KILLED"
            say(str(error))
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
