"""A training process: its job, its place among others, and how it is asked to end."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..config import Profile
from ..errors import BananagramsError
from ..profiles import validate
from . import launch

_MALLOPT = {-1: 2**31 - 1, -2: 64 * 2**20, -3: 32 * 2**20}
"""M_TRIM_THRESHOLD, M_TOP_PAD and M_MMAP_THRESHOLD of malloc.h, in bytes; the last as high as it may be."""


class TrainingError(BananagramsError, RuntimeError):
    """A training that cannot start or go on; the message says why and what to do."""


class Stopped(BananagramsError, RuntimeError):
    """The process was asked to end by a signal, and did after writing a checkpoint."""

    def __init__(self, number: int, step: int, total: int, where: str) -> None:
        name = signal.Signals(number).name
        super().__init__(
            f"stopped by {name} after step {step} of {total}; go on with `bananagrams train --resume {where}`"
        )
        self.number = number


@dataclass(frozen=True)
class Job:
    """What the job file says."""

    profile: Profile
    store: str
    tracking_uri: str
    mlflow_run_id: str
    resume: str | None
    output: str
    tags: Mapping[str, str]
    goes_on: bool = False
    """Whether it resumes an unfinished run of its own, of which publishing may be all that is left."""


@dataclass(frozen=True)
class Place:
    """This process among those that train together."""

    rank: int
    world: int
    device: torch.device


def read_job(where: Path | str) -> Job:
    """Read a job file, at a path or an S3 URL."""
    content = json.loads(launch.read_job_text(where))
    return Job(profile=validate(content.pop("profile"), str(where)), **content)


def keep_freed_memory() -> None:
    """Let glibc keep the memory that a step frees for the next one; other C libraries are left as they are.

    By default it hands large blocks back to the system, and a small network's step on a CPU then spends a
    tenth of its time on getting them anew, thousands of pages. See mallopt(3), and PyTorch's tuning guide on
    allocators.
    """
    if platform.libc_ver()[0] == "glibc":
        for option, value in _MALLOPT.items():
            ctypes.CDLL(None).mallopt(option, value)


@contextmanager
def join() -> Iterator[Place]:
    """This process's place, as torchrun says in the environment; alone without it."""
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
    if world > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(minutes=30))
    try:
        yield Place(rank, world, device)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def parallel(net: nn.Module, place: Place) -> nn.Module:
    """The network, its gradients averaged over all processes where there are several."""
    if place.world == 1:
        return net
    # A device's share of a batch may be too small for statistics of its own, and with those of the whole
    # batch a step computes the same on any number of devices.
    if place.device.type == "cuda":
        net = nn.SyncBatchNorm.convert_sync_batchnorm(net)  # type: ignore[no-untyped-call]
    else:
        share_statistics(net)
    return DistributedDataParallel(net, device_ids=[place.device] if place.device.type == "cuda" else None)


class SumOverProcesses(torch.autograd.Function):
    """The sum of a tensor over all processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(context: Any, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return SumOverProcesses.forward(context, gradient)


class SharedBatchNorm(nn.BatchNorm2d):
    """BatchNorm2d over the batches of all processes, on the CPU, which SyncBatchNorm does not support.

    Every process must bring a batch of the same size.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) → the same, normalised by the statistics of every process's B."""
        if not self.training:
            return super().forward(input)
        world, axes = dist.get_world_size(), (0, 2, 3)
        x = input.float()
        mean: Tensor = SumOverProcesses.apply(x.mean(axes)) / world
        centered = x - mean[:, None, None]
        variance: Tensor = SumOverProcesses.apply(centered.square().mean(axes)) / world
        count = world * x.numel() // x.shape[1]
        with torch.no_grad():
            for kept, found in (
                (self.running_mean, mean),
                (self.running_var, variance * (count / (count - 1))),
            ):
                assert kept is not None  # as BatchNorm2d starts
                assert self.momentum is not None
                kept.lerp_(found, self.momentum)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        normal: Tensor = centered * scale[:, None, None] + self.bias[:, None, None]
        return normal.to(input.dtype)


def share_statistics(net: nn.Module) -> None:
    """Make every BatchNorm2d in the network a SharedBatchNorm, in place."""
    for module in net.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SharedBatchNorm


@contextmanager
def listen_for_stop(place: Place) -> Iterator[Callable[[], int]]:
    """Yields a function that tells the SIGTERM or SIGINT that rank 0 has received, or 0.

    Other ranks ignore the signals: their gradients are needed for rank 0 to finish its step, after which
    its exit ends them.
    """
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)

    action = note if place.rank == 0 else signal.SIG_IGN
    before = {number: signal.signal(number, action) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: received[0] if received else 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
