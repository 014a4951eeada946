"""Our training step compared with a plain one: float32, text tower in every step, default memory format.

python -m bananagrams_tests.benchmarks.train_benchmark [--encoder resnet50] [--side 128] [--batch 8]

Both train the same network on the same batch, alternately, so that other load on the machine affects both.
The plain step runs the text tower on the whole batch and keeps the tower's padding; ours has the
instructions in its cache, as in every epoch after the first. Weights are random, as their values do not
affect the time of a step. On a GPU our steps are compiled, and the benchmark also prints images/s, the
fraction of the GPU's bfloat16 peak, and the fraction of time spent waiting for batches from shards.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from bananagrams_assets.config import Profile
from bananagrams_assets.learn.dataset import Batch, StepSampler, TrainingSet, data_loader, open_split
from bananagrams_assets.learn.losses import mask_loss
from bananagrams_assets.learn.network import MaskNet
from bananagrams_assets.learn.optimizer import autocast_precision, make_optimizer, should_compile
from bananagrams_assets.profiles import load_profile

from .loader_benchmark import make_shard

INSTRUCTIONS = (
    "Make the cup red",
    "Remove the dog on the left",
    "Write HELLO at the top",
    "Turn the left half blue",
)
PEAK_BF16 = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12}
"""Dense bfloat16 peak in operations/s from NVIDIA's data sheets, by a part of the device's name."""


def plain_step(profile: Profile, device: torch.device) -> Callable[[Batch], None]:
    """Return the training step of a straightforward loop."""
    net = MaskNet(profile.model, fetch=False).to(device).train()
    net.text.forward = torch.no_grad()(net.text.encode)  # type: ignore[method-assign]
    trainable = [parameter for parameter in net.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-4, foreach=False, fused=False)

    def step(batch: Batch) -> None:
        images, mask, valid = (plane.to(device) for plane in (batch.images, batch.mask, batch.valid))
        optimizer.zero_grad()
        logits = net(images.contiguous(), batch.texts)
        mask_loss(logits, mask / 255, valid).mean().backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(trainable, 1.0)
        optimizer.step()

    return step


def our_step(profile: Profile, device: torch.device) -> Callable[[Batch], None]:
    """Return the training step of bananagrams_assets.learn.train."""
    net = MaskNet(profile.model, fetch=False)
    net.to(device=device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer = make_optimizer(net, profile.train)
    precision = autocast_precision(profile.train, device, print)
    if should_compile(profile.train, device):
        for part in (net.image, net.fusion, net.decoder):
            part.compile()

    def step(batch: Batch) -> None:
        batch = batch.to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            logits = net(batch.images, batch.texts)
        loss = mask_loss(logits, batch.mask / 255, batch.valid).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()

    return step


def make_batch(side: int, batch: int) -> Batch:
    """Return random images and masks, all pixels valid, and a distinct instruction for each."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8, generator=generator)
    mask = torch.randint(0, 2, (batch, 1, side, side), dtype=torch.uint8, generator=generator) * 255
    texts = [f"{INSTRUCTIONS[i % len(INSTRUCTIONS)]}, number {i}" for i in range(batch)]
    return Batch(texts, texts, images, mask, torch.ones_like(mask), torch.ones(batch))


def seconds_of(step: Callable[[Batch], None], batch: Batch, device: torch.device) -> float:
    """Return the duration of one step in seconds, including the device's work."""
    start = time.perf_counter()
    step(batch)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def flops_of(profile: Profile, batch: Batch) -> int:
    """Return the floating-point operations of a step, forward and backward, for one sample."""
    net = MaskNet(profile.model, fetch=False)
    one = next(batch.micro_batches(len(batch.keys)))
    with FlopCounterMode(display=False) as counter:
        net.eval()(one.images, one.texts).sum().backward()
    return int(counter.get_total_flops())


def from_shards(
    profile: Profile, step: Callable[[Batch], None], steps: int, device: torch.device
) -> tuple[float, float]:
    """Return images/s of our steps on batches from a shard, and the fraction of time spent waiting."""
    settings = profile.train
    with tempfile.TemporaryDirectory() as name:
        store = make_shard(Path(name), 512, settings.side_px)
        with open_split(store, "train") as split:
            data = TrainingSet(split, settings.side_px, settings.augment, 0, cache=False)
            sampler = StepSampler(len(split), settings.batch_size, 0, range(steps + 5))
            batches: Iterable[Batch] = data_loader(data, sampler, settings.workers, device.type == "cuda")
            waited, start, wait_start = 0.0, time.perf_counter(), time.perf_counter()
            for number, batch in enumerate(batches):
                if number == 5:  # the loader has filled its queue, the step is compiled
                    waited, start = 0.0, time.perf_counter()
                else:
                    waited += time.perf_counter() - wait_start
                step(batch)
                if device.type == "cuda":
                    torch.cuda.synchronize()
                wait_start = time.perf_counter()
    total = time.perf_counter() - start
    return steps * settings.batch_size / total, waited / total


def main() -> None:
    """Print seconds per step of both, and their ratio."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--encoder", default="resnet18")
    parser.add_argument("--text", default="ViT-B-32")
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--workers", type=int, default=12)
    parser.add_argument("--shards", action="store_true", help="also measure steps on batches from shards")
    arguments = parser.parse_args()
    settings = {
        "model.image_encoder": arguments.encoder,
        "model.image_weights": "none",
        "model.text_encoder": arguments.text,
        "model.text_weights": "none",
        "model.text_context": 77,
        "train.side_px": arguments.side,
        "train.batch_size": arguments.batch,
        "train.workers": arguments.workers,
        "train.precision": "bfloat16",
    }
    profile = load_profile("pico-banana", settings).profile
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    batch = make_batch(arguments.side, arguments.batch)
    steps = {"plain": plain_step(profile, device), "ours": our_step(profile, device)}
    warm = 3 if device.type == "cuda" else 1
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(arguments.steps + warm):
        for name, step in steps.items():
            took = seconds_of(step, batch, device)
            if turn >= warm:
                seconds[name].append(took)
    plain, ours = (statistics.median(seconds[name]) for name in steps)
    print(
        f"{arguments.encoder} {arguments.side} px, batch {arguments.batch}, {device}: plain {plain:.3f} s, "
        f"ours {ours:.3f} s per step; {plain / ours:.2f} times as fast (median of {arguments.steps}); "
        f"{arguments.batch / ours:.0f} images/s"
    )
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        rate = flops_of(profile, batch) * arguments.batch / ours
        peak = next((value for part, value in PEAK_BF16.items() if part in name), None)
        share = f", {rate / peak:.0%} of its bf16 peak" if peak else ""
        print(f"{name}: {rate / 1e12:.0f} Tflop/s{share}")
    if arguments.shards or device.type == "cuda":
        speed, idle = from_shards(profile, steps["ours"], max(20, arguments.steps), device)
        print(f"from shards: {speed:.0f} images/s, {idle:.0%} of the time waiting for the loader")


if __name__ == "__main__":
    main()
