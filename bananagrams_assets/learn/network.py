"""The mask network: from a photo and an instruction to the region that the instruction edits.

    photo ───────► ResNet with coordinate channels ──► features at strides 4, 8, 16, 32
    instruction ─► text encoder ─► tokens ─┬──► cross-attention at some of the strides
                                           └──► FiLM in every block of the U-Net decoder ──► logits

Shapes in the docstrings: B images, C channels, H and W pixels, T tokens, D = fusion.width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.resnet import BasicBlock

from ..config import FusionSettings, ModelSettings
from .text import build_text_encoder, sinusoids
from .weights import WeightsError, fetch_error, read_weights

STRIDES = (4, 8, 16, 32)
RESNET10 = "resnet10"
"""A ResNet with one block per stage, for training from random weights on a CPU; not in torchvision.

No stage has more than 128 channels. With small images the deep stages of a ResNet have only a few positions;
wide ones took a quarter of the time of a step and did not improve the result.
"""
MEAN = (0.485, 0.456, 0.406)  # ImageNet statistics, which torchvision's weights were trained with
STD = (0.229, 0.224, 0.225)


class MaskNet(nn.Module):
    """Mask logits from photos and instructions.

    With `fetch` false the encoders have random weights, for a checkpoint to replace. Raises WeightsError.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, settings: ModelSettings, fetch: bool = True) -> None:
        super().__init__()
        width = settings.fusion.width
        self.text = build_text_encoder(settings, fetch)
        self.words = TokenProjection(self.text.width, width)
        self.image = ImageEncoder(settings.image_encoder, settings.image_weights if fetch else "none")
        self.fusion = Fusion(self.image.channels, settings.fusion)
        self.decoder = Decoder(
            self.fusion.channels, self.image.stem_channels, settings.decoder_channels, width
        )
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1) * 255, persistent=False)

    def forward(self, images: Tensor, instructions: Sequence[str]) -> Tensor:
        """Return logits float32 (B, 1, H, W) for images uint8 (B, 3, H, W) of any size and B instructions."""
        height, width = images.shape[-2:]
        x = (images.float() - self.mean) / self.std
        x = functional.pad(x, (0, -width % 32, 0, -height % 32), mode="replicate")
        x = torch.cat([x, coordinates(x, height, width)], 1)
        if images.is_contiguous(memory_format=torch.channels_last):
            x = x.contiguous(memory_format=torch.channels_last)
        tokens, mask, pooled = self.words(*self.text(instructions))
        stem, features = self.image(x)
        logits: Tensor = self.decoder(x, stem, self.fusion(features, tokens, mask), pooled)
        return logits[..., :height, :width].float()


class TokenProjection(nn.Module):
    """Projects token features to the fusion width and mixes each token with its two neighbours.

    A mean over tokens loses their order, which "make the red square blue" needs. A convolution over three
    tokens before pooling distinguishes "red square" from "square blue".
    """

    def __init__(self, text_width: int, width: int) -> None:
        super().__init__()
        self.project = nn.Linear(text_width, width)
        self.neighbours = nn.Conv1d(width, width, 3, padding=1)
        self.norm = nn.LayerNorm(width)

    def forward(self, features: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map features (B, T, C), mask (B, T) to tokens (B, T, D), the same mask, the mean token (B, D)."""
        is_token = mask[..., None]
        x = self.project(features) * is_token
        x = self.norm(x + functional.gelu(self.neighbours(x.mT).mT)) * is_token
        return x, mask, x.sum(1) / is_token.sum(1)


class ImageEncoder(nn.Module):
    """A torchvision ResNet by name; its first convolution has two more input channels, for the coordinates.

    `channels`: of the outputs of the four stages. `stem_channels`: of the features at stride 2.
    """

    # BatchNorm is kept because pretrained ResNets were trained with it. It uses batch statistics in
    # training, so a device's batch should have at least 8 samples. The decoder uses BatchNorm too, so that
    # the same rule applies to the whole network.

    def __init__(self, name: str, weights: str) -> None:
        super().__init__()
        net = load_resnet(name, weights)
        self.stem_channels: int = net.conv1.out_channels
        self.stem = nn.Sequential(add_coordinate_channels(net.conv1), net.bn1, net.relu)
        self.pool = net.maxpool
        self.stages = nn.ModuleList([net.layer1, net.layer2, net.layer3, net.layer4])
        with torch.no_grad():
            features = self.eval()(torch.zeros(1, 5, 32, 32))[1]
        self.channels = tuple(feature.shape[1] for feature in features)
        self.train()

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Map (B, 5, H, W) to stem features (B, C, H/2, W/2) and four (B, C, H/s, W/s) for s in STRIDES."""
        stem = self.stem(x)
        x = self.pool(stem)
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return stem, features


class Fusion(nn.Module):
    """Cross-attention layers at the strides in the settings, deepest first."""

    def __init__(self, channels: Sequence[int], settings: FusionSettings) -> None:
        super().__init__()
        fused = sorted(settings.strides, reverse=True)
        layers_per_stride, extra = divmod(settings.layers, len(fused))
        self.project = nn.ModuleDict()
        self.layers = nn.ModuleDict()
        for i, stride in enumerate(fused):
            self.project[str(stride)] = nn.Conv2d(channels[STRIDES.index(stride)], settings.width, 1)
            count = layers_per_stride + (i < extra)
            self.layers[str(stride)] = nn.ModuleList(
                CrossAttention(settings.width, settings.heads, settings.dropout) for _ in range(count)
            )
        self.channels = tuple(
            settings.width if stride in fused else channels[i] for i, stride in enumerate(STRIDES)
        )

    def forward(self, features: Sequence[Tensor], tokens: Tensor, mask: Tensor) -> list[Tensor]:
        """Return the four features (B, C, h, w) with D channels at the fused strides.

        `tokens` (B, T, D), `mask` bool (B, T).
        """
        fused = list(features)
        for key, project in self.project.items():
            index = STRIDES.index(int(key))
            grid = project(features[index])
            B, D, h, w = grid.shape
            x = grid.flatten(2).mT
            position = position_encoding(h, w, D, grid.device).to(x.dtype)
            for layer in self.layers[key]:  # type: ignore[attr-defined]
                x = layer(x, position, tokens, mask)
            fused[index] = x.mT.reshape(B, D, h, w)
        return fused


class CrossAttention(nn.Module):
    """A pre-norm transformer layer: queries from the image, keys and values from tokens, then an MLP."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.norm_ask = nn.LayerNorm(width)
        self.ask = nn.Linear(width, width)
        self.answer = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Dropout(dropout), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor, position: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """x (B, N, D), position (N, D), tokens (B, T, D), mask bool (B, T), False at pads → (B, N, D)."""
        query = self.ask(self.norm_ask(x) + position).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.answer(tokens).chunk(2, -1)
        )
        dropout = self.dropout if self.training else 0.0
        attended = functional.scaled_dot_product_attention(query, key, value, mask[:, None, None, :], dropout)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        y: Tensor = x + self.mlp(self.norm_mlp(x))
        return y


class Decoder(nn.Module):
    """A U-Net decoder from stride 32 to full resolution; the pooled tokens modulate each block (FiLM)."""

    def __init__(
        self, channels: Sequence[int], stem_channels: int, widths: Sequence[int], text_width: int
    ) -> None:
        super().__init__()
        skips = (channels[2], channels[1], channels[0], stem_channels)
        inputs = (channels[3], *widths[:-1])
        self.stages = nn.ModuleList(
            DecoderBlock(below, skip, width, text_width)
            for below, skip, width in zip(inputs, skips, widths, strict=True)
        )
        self.head = nn.Conv2d(widths[-1] + 5, 1, 3, padding=1)

    def forward(self, x: Tensor, stem: Tensor, features: Sequence[Tensor], pooled: Tensor) -> Tensor:
        """Map input (B, 5, H, W), stem (B, C, H/2, W/2), four features and pooled (B, D) to (B, 1, H, W)."""
        y = features[3]
        for block, skip in zip(self.stages, (features[2], features[1], features[0], stem), strict=True):
            stride = x.shape[-1] // skip.shape[-1]
            y = block(y, skip, functional.avg_pool2d(x[:1, 3:], stride), pooled)
        # The head is a convolution of upsampled y and x together. Computed separately, the part of y takes a
        # quarter of the operations and needs no full-resolution copy of y, the network's largest tensor.
        y_weight, x_weight = self.head.weight[:, : y.shape[1]], self.head.weight[:, y.shape[1] :]
        subpixels = functional.conv2d(y, subpixel_weight(y_weight), padding=1)
        return functional.pixel_shuffle(subpixels, 2) + functional.conv2d(
            x, x_weight, self.head.bias, padding=1
        )


class DecoderBlock(nn.Module):
    """Upsamples by 2, adds the encoder's skip features, and modulates each channel by the text (FiLM).

    The deeper features are convolved before upsampling, which takes a quarter of the operations. FiLM (Perez
    et al. 2018) computes each channel's scale and shift from the pooled tokens. Initially they are 1 and 0.
    """

    def __init__(self, below: int, skip: int, width: int, text_width: int) -> None:
        super().__init__()
        self.below = nn.Conv2d(below, width, 3, padding=1, bias=False)
        self.skip = nn.Conv2d(skip, width, 3, padding=1, bias=False)
        self.position = nn.Conv2d(2, width, 1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.film = nn.Sequential(
            nn.Linear(text_width, text_width), nn.GELU(), nn.Linear(text_width, 2 * width)
        )
        self.refine = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        last = self.film[-1]
        nn.init.zeros_(last.weight)  # type: ignore[arg-type]
        nn.init.zeros_(last.bias)  # type: ignore[arg-type]

    def forward(self, y: Tensor, skip: Tensor, position: Tensor, pooled: Tensor) -> Tensor:
        """Return (B, width, 2h, 2w).

        y (B, C, h, w), skip (B, C', 2h, 2w), position (1, 2, 2h, 2w), pooled (B, D).
        """
        y = self.norm(upsample(self.below(y)) + self.skip(skip) + self.position(position))
        scale, shift = self.film(pooled)[..., None, None].chunk(2, 1)
        refined: Tensor = self.refine(functional.relu(y * (1 + scale) + shift))
        return refined


def load_resnet(name: str, weights: str) -> torchvision.models.ResNet:
    """Return a torchvision ResNet; `weights` is `pretrained`, `none` or a local file. Raises WeightsError."""
    names = [RESNET10, *torchvision.models.list_models(torchvision.models, include=["*resnet*", "resnext*"])]
    if name not in names:
        raise WeightsError(f"model.image_encoder: {name!r} is not an available ResNet: {', '.join(names)}")
    if weights == "pretrained":
        if name == RESNET10:
            raise WeightsError(f"model.image_weights: {name} has no published weights: set it to none")
        try:
            return torchvision.models.get_model(name, weights="DEFAULT")
        except (OSError, RuntimeError) as error:
            raise fetch_error("model.image_weights", name, weights, error) from None
    net = make_resnet10() if name == RESNET10 else torchvision.models.get_model(name, weights=None)
    if weights != "none":
        # The classifier `fc` is not used.
        own = {key: value for key, value in net.state_dict().items() if not key.startswith("fc.")}
        net.load_state_dict(read_weights("model.image_weights", weights, name, own), strict=False)
    return net


def make_resnet10() -> torchvision.models.ResNet:
    """Return the ResNet described at RESNET10, with random weights."""
    net = torchvision.models.ResNet(BasicBlock, [1, 1, 1, 1])
    for stage in ("layer3", "layer4"):
        downsample = nn.Sequential(nn.Conv2d(128, 128, 1, 2, bias=False), nn.BatchNorm2d(128))
        setattr(net, stage, nn.Sequential(BasicBlock(128, 128, 2, downsample)))
    return net


def add_coordinate_channels(conv: nn.Conv2d) -> nn.Conv2d:
    """Return the convolution with two more input channels of zero weights, which do not change its output."""
    options: Any = {"kernel_size": conv.kernel_size, "stride": conv.stride, "padding": conv.padding}
    wider = nn.Conv2d(conv.in_channels + 2, conv.out_channels, bias=False, **options)
    with torch.no_grad():
        wider.weight.zero_()
        wider.weight[:, : conv.in_channels] = conv.weight
    return wider


def coordinates(x: Tensor, height: int, width: int) -> Tensor:
    """Return x and y coordinates (B, 2, H, W) for x (B, C, H, W).

    They span -1..1 over the first `width` columns and `height` rows and continue beyond 1 in the padding.
    """
    # arange instead of linspace: its length stays dynamic in torch.export.
    columns = torch.arange(x.shape[3], device=x.device) * (2 / max(1, width - 1)) - 1
    rows = torch.arange(x.shape[2], device=x.device) * (2 / max(1, height - 1)) - 1
    grid = torch.stack([columns.expand(x.shape[2], -1), rows[:, None].expand(-1, x.shape[3])])
    return grid.to(x.dtype).expand(x.shape[0], -1, -1, -1)


def position_encoding(height: int, width: int, channels: int, device: torch.device) -> Tensor:
    """Return the sinusoidal position encoding of each grid cell, float32 (height * width, channels)."""
    # Each side is scaled to 0..100, so that "the left half" has the same encoding in a grid of any size.
    rows = sinusoids((torch.arange(height, device=device) + 0.5) * (100 / height), channels // 2)
    columns = sinusoids((torch.arange(width, device=device) + 0.5) * (100 / width), channels - channels // 2)
    grid = [rows[:, None].expand(-1, width, -1), columns[None].expand(height, -1, -1)]
    return torch.cat(grid, -1).flatten(0, 1)


def subpixel_weight(weight: Tensor) -> Tensor:
    """Convert weights (O, C, 3, 3) for `upsample(x)` to sub-pixel convolution weights (4 * O, C, 3, 3) for x.

    `pixel_shuffle(conv2d(x, result, padding=1), 2)` equals `conv2d(upsample(x), weight, padding=1)` exactly
    (Shi et al. 2016, "Is the deconvolution layer the same as a convolutional layer?"). The 3 rows under the
    kernel at an even output row come from input rows i - 1, i, i; at an odd one from i, i, i + 1. The same
    holds for columns.
    """
    source = weight.new_tensor([[[1, 0, 0], [0, 1, 1], [0, 0, 0]], [[0, 0, 0], [1, 1, 0], [0, 0, 1]]])
    return torch.einsum("air,bjs,ocrs->oabcij", source, source, weight).flatten(0, 2)


def upsample(x: Tensor) -> Tensor:
    """Upsample (B, C, H, W) to (B, C, 2H, 2W) by repeating each pixel."""
    # The convolution that follows smooths the result. The backward pass of bilinear upsampling takes a tenth
    # of a step on a CPU and did not improve the result.
    return functional.interpolate(x, scale_factor=2, mode="nearest")
