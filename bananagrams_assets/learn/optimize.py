"""Steps, learning rate, parameter groups and arithmetic of a training."""

from __future__ import annotations

import math
from collections.abc import Callable

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
    return kind(options, lr=settings.learning_rate, fused=True)


def autocast_precision(settings: TrainSettings, device: torch.device, say: Callable[[str], None]) -> str:
    """The profile's precision, or float32 where bfloat16 would only be emulated, and slower."""
    if settings.precision == "bfloat16":
        capabilities = torch.cpu.get_capabilities()
        native = (
            torch.cuda.is_bf16_supported(including_emulation=False)
            if device.type == "cuda"
            else capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
        )
        if not native:
            say("this device has no bfloat16 arithmetic: training in float32")
            return "float32"
    return settings.precision
