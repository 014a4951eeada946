"""Our training step against a plain one: float32, text tower at every step, PyTorch's default memory layout.

python -m bananagrams_tests.benchmarks.train_benchmark [--encoder resnet50] [--side 128] [--batch 8]

Both train the same network on the same batch, in turn, so that whatever else the machine does hits both
alike. No weights are needed: their values do not change what a step costs.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from bananagrams_assets.config import Profile
from bananagrams_assets.learn.losses import mask_loss
from bananagrams_assets.learn.network import MaskNet
from bananagrams_assets.learn.optimize import autocast_precision, make_optimizer
from bananagrams_assets.profiles import load_profile

WORDS = (
    "Make the cup red",
    "Remove the dog on the left",
    "Write HELLO at the top",
    "Turn the left half blue",
)


def plain_step(profile: Profile, device: torch.device, batch: int) -> Callable[[], None]:
    """One step as a straightforward loop does it."""
    net = MaskNet(profile.model, fetch=False).to(device).train()
    trainable = [parameter for parameter in net.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-4, foreach=False, fused=False)
    pictures, mask, known = make_batch(profile.train.side_px, batch, device)
    texts = [WORDS[i % len(WORDS)] for i in range(batch)]

    def step() -> None:
        net.text._cache.clear()
        optimizer.zero_grad()
        mask_loss(net(pictures, texts), mask, known).mean().backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(trainable, 1.0)
        optimizer.step()

    return step


def our_step(profile: Profile, device: torch.device, batch: int) -> Callable[[], None]:
    """One step as bananagrams_assets.learn.train does it."""
    net = MaskNet(profile.model, fetch=False)
    net.to(device=device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer = make_optimizer(net, profile.train)
    pictures, mask, known = make_batch(profile.train.side_px, batch, device)
    pictures = pictures.contiguous(memory_format=torch.channels_last)
    texts = [WORDS[i % len(WORDS)] for i in range(batch)]
    precision = autocast_precision(profile.train, device, print)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            logits = net(pictures, texts)
        loss = mask_loss(logits, mask, known).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()

    return step


def make_batch(
    side: int, batch: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random pictures, and masks that are all known."""
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8, generator=generator)
    mask = torch.randint(0, 2, (batch, 1, side, side), dtype=torch.uint8, generator=generator)
    return pictures.to(device), mask.to(device), torch.ones_like(mask, device=device)


def main() -> None:
    """Print seconds a step of both, and their ratio."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--encoder", default="resnet18")
    parser.add_argument("--text", default="ViT-B-32")
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=5)
    arguments = parser.parse_args()
    settings = {
        "model.image_encoder": arguments.encoder,
        "model.image_weights": "none",
        "model.text_encoder": arguments.text,
        "model.text_weights": "none",
        "model.text_context": 77,
        "train.side_px": arguments.side,
        "train.precision": "bfloat16",
    }
    profile = load_profile("pico-banana", settings).profile
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    steps = {
        "plain": plain_step(profile, device, arguments.batch),
        "ours": our_step(profile, device, arguments.batch),
    }
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(arguments.steps + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if turn:  # the first of each warms up
                seconds[name].append(time.perf_counter() - start)
    plain, ours = (statistics.median(seconds[name]) for name in steps)
    print(
        f"{arguments.encoder} {arguments.side} px, batch {arguments.batch}, {device}: plain {plain:.3f} s, "
        f"ours {ours:.3f} s a step; {plain / ours:.2f} times as fast (median of {arguments.steps}, in turn)"
    )


if __name__ == "__main__":
    main()
