"""Steps, learning rate, parameter groups, averaged weights and arithmetic of a training."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from ..config import TrainSettings
from .network import MaskNet


def total_steps(samples: int, settings: TrainSettings) -> int:
    """Steps in all: the epochs' samples in batches, or `max_steps` if that is fewer."""
    steps = math.ceil(samples * settings.epochs / settings.batch_size)
    return min(steps, settings.max_steps or steps)


def rate_factor(step: int, total: int, settings: TrainSettings) -> float:
    """Learning rate of a step (from 0), as a share of the highest: a linear rise, then the schedule."""
    warmup = min(settings.warmup_steps, total // 2)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, total - warmup)
    if settings.scheduler == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    return 1 - progress if settings.scheduler == "linear" else 1.0


def make_optimizer(net: MaskNet, settings: TrainSettings) -> torch.optim.Optimizer:
    """The optimizer, encoders at their own rate; norms and biases are not decayed."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in net.named_parameters():
        if parameter.requires_grad:
            encoder = name.startswith(("image.", "text."))
            groups.setdefault((encoder, parameter.dim() > 1), []).append(parameter)
    options = [
        {
            "params": parameters,
            "factor": settings.encoder_rate if encoder else 1.0,
            "weight_decay": settings.weight_decay if decays else 0.0,
        }
        for (encoder, decays), parameters in groups.items()
    ]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(options, lr=settings.learning_rate, momentum=0.9)
    kind = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.Adam
    betas = (0.9, settings.beta2)
    return kind(options, lr=settings.learning_rate, betas=betas, fused=True)


def autocast_precision(settings: TrainSettings, device: torch.device, log: Callable[[str], None]) -> str:
    """The profile's precision, or float32 where bfloat16 would only be emulated, and slower."""
    if settings.precision == "bfloat16":
        capabilities = torch.cpu.get_capabilities()
        native = (
            torch.cuda.is_bf16_supported(including_emulation=False)
            if device.type == "cuda"
            else capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
        )
        if not native:
            log("this device has no bfloat16 arithmetic: training in float32")
            return "float32"
    return settings.precision


class Average:
    """An exponential moving average of a network's weights (Polyak and Juditsky 1992).

    It follows what learns, batch statistics included; a frozen text encoder is not copied. The decay
    rises from 1/10 to the one asked for, so that the random start is soon forgotten.
    """

    def __init__(self, net: MaskNet, decay: float) -> None:
        self.decay = decay
        frozen = {name for name, parameter in net.named_parameters() if not parameter.requires_grad}
        self._own = {
            name: value
            for name, value in net.state_dict().items()
            if value.is_floating_point() and name not in frozen
        }
        self.tensors = {name: value.detach().clone() for name, value in self._own.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the network's weights after step `step`, counted from 1."""
        decay = min(self.decay, step / (step + 9))
        torch._foreach_lerp_(list(self.tensors.values()), list(self._own.values()), 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The network holds the average while the block runs, and then its own weights again, bit by bit."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, own in self._own.items():
            kept = own.clone()
            own.copy_(self.tensors[name])
            self.tensors[name].copy_(kept)


def compiles(settings: TrainSettings, device: torch.device) -> bool:
    """Whether torch.compile is used: on a GPU, unless the profile forbids it."""
    # On a CPU it takes a minute and a half to compile and gained nothing.
    return settings.compile and device.type == "cuda"
