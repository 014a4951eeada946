"""State of a training (network, optimizer, EMA, best checkpoint, losses) and the operations of its loop."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..config import TrainSettings
from ..errors import BananagramsError
from ..progress import Log
from ..storage import paths
from ..storage.store import Store
from . import checkpoint, report
from .dataset import Batch, Split, StepSampler, TrainingSet, data_loader
from .distributed import DistributedContext, data_parallel, mean_over_ranks, no_gradient_sync
from .evaluate import DevScorer
from .job_file import OUTPUT, TrainingJob
from .losses import mask_loss
from .network import MaskNet
from .optimizer import EMA, autocast_precision, lr_multiplier, make_optimizer, should_compile, total_steps
from .predict import make_predictor
from .publish import model_sections, publish
from .tracking import RunLog

MAX_SHEETS = 20
"""Maximum number of sheets of dev predictions that a training logs, evenly spaced over its steps."""


class TrainingError(BananagramsError, RuntimeError):
    """A training cannot start or continue; the message gives the reason and the remedy."""


class TrainingRun:
    """A training on one process.

    Steps are counted from 1; the first `first_step` steps are in the checkpoint that was resumed. `best` is
    the step with the best mean IoU on dev, `best_name` its checkpoint. `run_log` is set on rank 0.
    """

    def __init__(
        self,
        job: TrainingJob,
        context: DistributedContext,
        store: Store,
        train_split: Split,
        dev_split: Split,
        log: Log,
    ) -> None:
        settings = job.profile.train
        self.job, self.context, self.store, self.log, self.settings = job, context, store, log, settings
        self.train_split, self.dev_split = train_split, dev_split
        self.dev_scorer = DevScorer(dev_split, train_split, settings, context.rank, context.world_size)
        self.total = total_steps(len(train_split), settings)
        self.checkpoints, self.prefix = f"{OUTPUT}/checkpoints", job.mlflow_run_id[:8]
        self.run_log: RunLog | None = None

        torch.manual_seed(settings.seed)
        self.net = MaskNet(job.profile.model, fetch=job.resume is None)
        self.net.text.cache_bytes = settings.text_cache_mb * 2**20
        self.net.to(device=context.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = make_optimizer(self.net, settings)
        self.ema = EMA(self.net, settings.ema_decay) if settings.ema_decay else None
        self.first_step = 0
        self.best: dict[str, Any] = {"step": 0, "dev_iou": -1.0}
        self.best_name = ""
        if job.resume:
            self._resume(job.resume)
        if should_compile(settings, context.device):
            for part in (self.net.image, self.net.fusion, self.net.decoder):
                part.compile()
        self.model = data_parallel(self.net, context)
        self.precision = autocast_precision(settings, context.device, log)

        self.losses: list[tuple[int, float]] = []
        self.dev_ious: list[tuple[int, float]] = []
        self._unchecked: tuple[Tensor, Batch, int] | None = None
        self._loss_sum, self._loss_count = torch.zeros((), device=context.device), 0
        self._last_log = time.monotonic(), self.first_step
        self._sheets = 0

    def log_inputs(self) -> None:
        """Log settings and datasets to MLflow (on rank 0) and a summary line."""
        if self.run_log:
            facts = {"dataset": self.train_split.digest, "devices": self.context.world_size}
            self.run_log.settings({**model_sections(self.job.profile), **facts}, self.job.document)
            for split, use in ((self.train_split, "training"), (self.dev_split, "validation")):
                self.run_log.dataset(split, self.store.describe(paths.index_json(split.name)), use)
        parameters = sum(parameter.numel() for parameter in self.net.parameters() if parameter.requires_grad)
        self.log(
            f"{len(self.train_split)} training and {len(self.dev_split)} dev samples; "
            f"{parameters / 1e6:.1f} M parameters; {self.context.world_size} x {self.context.device.type}; "
            f"steps {self.first_step} to {self.total}"
        )

    def batches(self) -> Iterator[tuple[int, Batch]]:
        """Return the remaining steps, each with this rank's share of its batch."""
        settings, context = self.settings, self.context
        weight = partial(sample_weight, settings)
        data = TrainingSet(
            self.train_split, settings.side_px, settings.augment, settings.seed, not settings.workers, weight
        )
        steps = range(self.first_step, self.total)
        sampler = StepSampler(
            len(data), settings.batch_size, settings.seed, steps, context.rank, context.world_size
        )
        loader = data_loader(data, sampler, settings.workers, pin_memory=context.device.type == "cuda")
        self._last_log = time.monotonic(), self.first_step
        return enumerate(loader, self.first_step + 1)

    def train_step(self, step: int, batch: Batch) -> None:
        """Update the weights with one batch."""
        # The RNG is seeded by the step, so that a resumed run needs no saved RNG state.
        seeds = np.random.SeedSequence([self.settings.seed, step, self.context.rank])
        torch.manual_seed(int(seeds.generate_state(1)[0]))
        self.model.train()
        multiplier = lr_multiplier(step - 1, self.total, self.settings)
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * group["factor"] * multiplier
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._backward(batch)
        if self.settings.clip_norm:
            nn.utils.clip_grad_norm_(self.net.parameters(), self.settings.clip_norm)
        self.optimizer.step()
        if self.ema:
            self.ema.update(step)
        # Checks the loss of the previous step, so that the CPU does not wait for the GPU.
        self.check_loss()
        self._unchecked = loss, batch, step
        self._loss_sum, self._loss_count = self._loss_sum + loss, self._loss_count + 1

    def check_loss(self) -> None:
        """Raise TrainingError if the loss of the last step is not finite. Waits for the GPU."""
        if self._unchecked:
            check_finite(*self._unchecked)

    def log_progress(self, step: int, with_evaluation: bool) -> None:
        """Log mean loss, speed, learning rate and optionally dev mean IoU. All ranks must call this."""
        loss = mean_over_ranks(self._loss_sum, self.context) / self._loss_count
        self._loss_sum, self._loss_count = torch.zeros_like(self._loss_sum), 0
        last_time, last_step = self._last_log
        speed = (step - last_step) / (time.monotonic() - last_time)
        self.losses.append((step, loss))
        line = f"step {step}/{self.total} loss {loss:.3f}"
        values = {"loss": loss, "steps_per_s": speed}
        if with_evaluation:
            values["dev_iou"] = self._evaluate(step)
            line += f" dev mean IoU {values['dev_iou']:.3f} ({self.dev_scorer.baseline_text})"
        if self.run_log:
            multiplier = lr_multiplier(step - 1, self.total, self.settings)
            values["learning_rate"] = self.settings.learning_rate * multiplier
            self.run_log.metrics(values, step)
        self.log(f"{line} {speed:.2f} it/s")
        self._last_log = time.monotonic(), step

    def save(self, step: int) -> str:
        """Write a checkpoint to resume from, delete old ones, return its name. Only rank 0 must call this."""
        name = f"{self.checkpoints}/{self.prefix}-{step:06d}"
        if self.run_log:  # first, so that no checkpoint exists whose metrics are lost
            self.run_log.flush()
        state = {
            "step": step,
            "best": self.best,
            "dataset": self.train_split.digest,
            "devices": self.context.world_size,
            **model_sections(self.job.profile),
        }
        checkpoint.save(self.store, name, self.net, self.optimizer, state, self.ema)
        checkpoint.prune(self.store, self.checkpoints, self.prefix, self.settings.keep_checkpoints)
        self.log(f"checkpoint {name}")
        return name

    def publish_best(self, started: float) -> dict[str, Any]:
        """Publish the best weights, see publish.publish. `started` is the job's start by time.monotonic()."""
        assert self.run_log is not None
        checkpoint.load(self.store, self.best_name, self.net)
        if self.best["step"] != self.total:
            self.log(f"the weights of step {self.best['step']} are the best on dev")
        best_baseline = max(self.dev_scorer.baselines.values())
        self.run_log.file("curves.png", report.curves(self.losses, self.dev_ious, best_baseline))
        facts = {
            "steps": self.total,
            "best_step": int(self.best["step"]),
            "seconds": round(time.monotonic() - started, 1),
        }
        result = publish(
            self.job, self.store, self.net, self.train_split, self.dev_split, facts, self.run_log, self.log
        )
        checkpoint.remove_other_runs(self.store, self.checkpoints, self.prefix)
        return result

    def _resume(self, name: str) -> None:
        """Load a checkpoint and the best dev IoU of its run. Raises CheckpointError and TrainingError."""
        state = checkpoint.load(self.store, name, self.net, self.optimizer, self.ema)
        self.first_step = state["step"]
        best_name = name.rstrip("/").rpartition("-")[0] + "-best"  # …/1a2b3c4d-000100 → …/1a2b3c4d-best
        if checkpoint.exists(self.store, best_name):
            best = checkpoint.read_state(self.store, best_name)
            self.best, self.best_name = {"step": best["step"], "dev_iou": best["dev_iou"]}, best_name
        only_publish = self.job.continues_own_run and self.first_step == self.total
        if self.first_step >= self.total and not only_publish:
            raise TrainingError(
                f"{name} has completed all its {self.total} steps: raise train.epochs or train.max_steps"
            )
        for difference in resume_differences(state, self.job, self.context, self.train_split.digest):
            self.log(f"note: not bit-equal to an uninterrupted run: {difference}")

    def _backward(self, batch: Batch) -> Tensor:
        """Accumulate the gradients of a batch in micro-batches and return its loss, a scalar."""
        settings, device = self.settings, self.context.device
        samples = settings.batch_size // self.context.world_size
        total = torch.zeros((), device=device)
        for number, micro_batch in enumerate(batch.micro_batches(settings.accumulate), 1):
            part = micro_batch.to(device)
            # Gradients are synchronised once per step, with the last micro-batch.
            with nullcontext() if number == settings.accumulate else no_gradient_sync(self.model):
                with torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
                    logits = self.model(part.images, part.texts)
                sample_losses = mask_loss(
                    logits, part.mask / 255, part.valid, settings.bce_weight, settings.dice_weight
                )
                loss = (sample_losses * part.weights).sum() / samples
                loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        return total

    def _evaluate(self, step: int) -> float:
        """Return mean IoU on dev, with the EMA weights if there are any; save the best weights so far."""
        with self.ema.applied() if self.ema else nullcontext():
            dev_iou = self.dev_scorer.mean_iou(self.net, self.precision)
            if dev_iou > self.best["dev_iou"]:
                self.best = {"step": step, "dev_iou": dev_iou}
                self.best_name = f"{self.checkpoints}/{self.prefix}-best"
                if self.context.rank == 0:
                    state = {**self.best, **model_sections(self.job.profile)}
                    checkpoint.save(self.store, self.best_name, self.net, None, state)
            sheets = step * MAX_SHEETS // self.total
            if self.run_log and (sheets > self._sheets or step == self.total):
                self._sheets = sheets
                predictor = make_predictor(self.net, self.settings.side_px)
                sheet = report.overlay_sheet(predictor, self.dev_split, 8)
                self.run_log.image("dev_predictions", sheet, step)
        self.dev_ious.append((step, dev_iou))
        return dev_iou


def sample_weight(settings: TrainSettings, meta: Mapping[str, Any]) -> float:
    """Return a sample's weight in the loss from its meta.json."""
    mask = meta["mask"]
    weight = settings.global_weight if mask["is_global"] else 1.0
    return weight * float(mask["confidence"]) if settings.weigh_confidence else weight


def resume_differences(
    state: Mapping[str, Any], job: TrainingJob, context: DistributedContext, dataset: str
) -> Iterator[str]:
    """Describe each difference between the job and the run that wrote the checkpoint."""
    if state["dataset"] != dataset:
        yield "the checkpoint was trained on another dataset; training continues on this one"
    if state.get("devices", context.world_size) != context.world_size:
        yield (
            f"the checkpoint is from {state['devices']} devices, training continues on {context.world_size} "
            "with the same samples, but sums are rounded differently"
        )
    before, now = state.get("train", {}), model_sections(job.profile)["train"]
    for key in sorted(now.keys() & before.keys() - job.profile.train.operational):
        if before[key] != now[key]:
            yield f"train.{key} was {before[key]}, is {now[key]}"


def check_finite(loss: Tensor, batch: Batch, step: int) -> None:
    """Raise TrainingError with the step's samples if its loss is not finite."""
    if not math.isfinite(loss.item()):
        raise TrainingError(
            f"the loss of step {step} is {loss.item()}: lower train.learning_rate or check its samples: "
            + "; ".join(f"{key} {text[:60]!r}" for key, text in zip(batch.keys, batch.texts, strict=True))
        )
