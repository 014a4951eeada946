"""Number of steps, learning rate, parameter groups, EMA of the weights, and precision of a training."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from ..config import TrainSettings
from .network import MaskNet


def total_steps(samples: int, settings: TrainSettings) -> int:
    """Return the number of steps: `epochs` over all samples in batches, or `max_steps` if that is fewer."""
    steps = math.ceil(samples * settings.epochs / settings.batch_size)
    return min(steps, settings.max_steps or steps)


def lr_multiplier(step: int, total: int, settings: TrainSettings) -> float:
    """Return a step's (from 0) learning rate as a fraction 0..1 of the peak: linear warm-up, then decay."""
    warmup = min(settings.warmup_steps, total // 2)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, total - warmup)
    if settings.scheduler == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    return 1 - progress if settings.scheduler == "linear" else 1.0


def make_optimizer(net: MaskNet, settings: TrainSettings) -> torch.optim.Optimizer:
    """Return the optimizer. Encoders have their own learning rate; norms and biases have no weight decay.

    Each parameter group's `factor` multiplies the learning rate.
    """
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
    """Return the profile's precision, or float32 if the device only emulates bfloat16, which is slower."""
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


class EMA:
    """Exponential moving average of a network's weights (Polyak and Juditsky 1992).

    It covers trainable parameters and BatchNorm statistics; a frozen text encoder is not copied. The decay
    increases from 1/10 to `decay`, so that the random initial weights soon lose their influence.
    """

    def __init__(self, net: MaskNet, decay: float) -> None:
        self.decay = decay
        frozen = {name for name, parameter in net.named_parameters() if not parameter.requires_grad}
        self._net_tensors = {
            name: value
            for name, value in net.state_dict().items()
            if value.is_floating_point() and name not in frozen
        }
        self.tensors = {name: value.detach().clone() for name, value in self._net_tensors.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Update the average with the network's weights after step `step`, counted from 1."""
        decay = min(self.decay, step / (step + 9))
        torch._foreach_lerp_(list(self.tensors.values()), list(self._net_tensors.values()), 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Load the average into the network for the block, then restore its own weights bit by bit."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, value in self._net_tensors.items():
            copy = value.clone()
            value.copy_(self.tensors[name])
            self.tensors[name].copy_(copy)


def should_compile(settings: TrainSettings, device: torch.device) -> bool:
    """Return whether to use torch.compile: on a GPU, unless the profile disables it."""
    # On a CPU compilation takes 90 s and does not make steps faster.
    return settings.compile and device.type == "cuda"
