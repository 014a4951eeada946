"""A training process: its rank and device, synchronised gradients and statistics, signals, memory."""

from __future__ import annotations

import ctypes
import os
import platform
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

_MALLOC_OPTIONS = {-1: 2**31 - 1, -2: 64 * 2**20, -3: 32 * 2**20}
"""M_TRIM_THRESHOLD, M_TOP_PAD and M_MMAP_THRESHOLD of malloc.h, in bytes; the last is the maximum allowed."""


@dataclass(frozen=True)
class DistributedContext:
    """Rank and device of this process, and the number of processes of the training."""

    rank: int
    world_size: int
    device: torch.device


def retain_freed_memory() -> None:
    """Configure glibc's malloc to keep freed memory for the next step; leave other C libraries unchanged.

    By default malloc returns large blocks to the operating system. On a CPU a step of a small network then
    spends a tenth of its time on page faults for new blocks. See mallopt(3) and the section on allocators in
    PyTorch's performance tuning guide.
    """
    if platform.libc_ver()[0] == "glibc":
        for option, value in _MALLOC_OPTIONS.items():
            ctypes.CDLL(None).mallopt(option, value)


@contextmanager
def distributed_context() -> Iterator[DistributedContext]:
    """Join the process group given by torchrun's environment variables; without them, be rank 0 of 1."""
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
    if world_size > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(minutes=30))
    try:
        yield DistributedContext(rank, world_size, device)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def data_parallel(net: nn.Module, context: DistributedContext) -> nn.Module:
    """Wrap the network in DistributedDataParallel with synchronised BatchNorm; no-op for one process."""
    if context.world_size == 1:
        return net
    # A device's share of a batch may be too small for BatchNorm statistics. With the statistics of the whole
    # batch a step computes the same result on any number of devices.
    if context.device.type == "cuda":
        net = nn.SyncBatchNorm.convert_sync_batchnorm(net)  # type: ignore[no-untyped-call]
    else:
        convert_cpu_sync_batchnorm(net)
    device_ids = [context.device] if context.device.type == "cuda" else None
    return DistributedDataParallel(net, device_ids=device_ids)


def no_gradient_sync(model: nn.Module) -> AbstractContextManager[None]:
    """Return a context in which backward passes accumulate gradients on this device only."""
    return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()


def mean_over_ranks(value: Tensor, context: DistributedContext) -> float:
    """Average a scalar over all processes. Every process must call this; `value` is changed in place."""
    if context.world_size > 1:
        dist.all_reduce(value)
    return value.item() / context.world_size


class AllReduceSum(torch.autograd.Function):
    """Sum of a tensor over all processes; the gradient is the sum of the processes' gradients."""

    @staticmethod
    def forward(context: Any, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return AllReduceSum.forward(context, gradient)


class CpuSyncBatchNorm(nn.BatchNorm2d):
    """BatchNorm2d with the statistics of all processes' batches, for the CPU (SyncBatchNorm needs a GPU).

    Every process must have the same batch size.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (B, C, H, W) by the statistics over the B of all processes."""
        if not self.training:
            return super().forward(input)
        world_size, axes = dist.get_world_size(), (0, 2, 3)
        x = input.float()
        mean: Tensor = AllReduceSum.apply(x.mean(axes)) / world_size
        centered = x - mean[:, None, None]
        variance: Tensor = AllReduceSum.apply(centered.square().mean(axes)) / world_size
        count = world_size * x.numel() // x.shape[1]
        with torch.no_grad():
            unbiased = variance * (count / (count - 1))
            for running, current in ((self.running_mean, mean), (self.running_var, unbiased)):
                assert running is not None  # BatchNorm2d's default: track_running_stats
                assert self.momentum is not None
                running.lerp_(current, self.momentum)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        normalised: Tensor = centered * scale[:, None, None] + self.bias[:, None, None]
        return normalised.to(input.dtype)


def convert_cpu_sync_batchnorm(net: nn.Module) -> None:
    """Turn every BatchNorm2d of the network into a CpuSyncBatchNorm, in place."""
    for module in net.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = CpuSyncBatchNorm


@contextmanager
def catch_stop_signals(context: DistributedContext) -> Iterator[Callable[[], int]]:
    """Yield a function that returns the number of the SIGTERM or SIGINT received by rank 0, else 0.

    Other ranks ignore both signals: rank 0 needs their gradients to finish its step, and its exit ends them.
    """
    received: list[int] = []

    def record(number: int, frame: FrameType | None) -> None:
        received.append(number)

    action = record if context.rank == 0 else signal.SIG_IGN
    previous = {number: signal.signal(number, action) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: received[0] if received else 0
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
