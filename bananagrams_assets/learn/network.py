"""The mask network: a photograph and an instruction → where the instruction edits the photograph.

    photograph ──► ResNet with coordinates ──► features at strides 4, 8, 16, 32
    instruction ─► text encoder ─► words ──┬──► cross-attention at some of the strides
                                           └──► FiLM at every stage of the U-Net decoder ──► logits

Sizes in the docstrings: B pictures, C channels, H and W pixels, T tokens, D = fusion.width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.resnet import BasicBlock

from ..config import FusionSettings, ModelSettings
from .text import build_text_encoder, sinusoids
from .weights import WeightsError, cannot_fetch, read_state

STRIDES = (4, 8, 16, 32)
SMALLEST = "resnet10"
"""One block a stage, for training from nothing on a CPU; torchvision has the parts but no name for it.

No stage is wider than 128 channels: at small sides the deep stages of a ResNet see a handful of positions,
cost a quarter of a step and gained nothing.
"""
MEAN = (0.485, 0.456, 0.406)  # of ImageNet's photographs, which torchvision's weights were trained with
STD = (0.229, 0.224, 0.225)


class MaskNet(nn.Module):
    """Photographs and instructions → mask logits.

    With `fetch` false the encoders start without weights, for a checkpoint to fill. Raises WeightsError.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, settings: ModelSettings, fetch: bool = True) -> None:
        super().__init__()
        width = settings.fusion.width
        self.text = build_text_encoder(settings, fetch)
        self.words = Words(self.text.width, width)
        self.image = ImageEncoder(settings.image_encoder, settings.image_weights if fetch else "none")
        self.fusion = Fusion(self.image.channels, settings.fusion)
        self.decoder = Decoder(
            self.fusion.channels, self.image.stem_channels, settings.decoder_channels, width
        )
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1) * 255, persistent=False)

    def forward(self, images: Tensor, instructions: Sequence[str]) -> Tensor:
        """Pictures uint8 (B, 3, H, W) of any H and W, and B instructions → logits float32 (B, 1, H, W)."""
        height, width = images.shape[-2:]
        x = (images.float() - self.mean) / self.std
        x = functional.pad(x, (0, -width % 32, 0, -height % 32), mode="replicate")
        x = torch.cat([x, coordinates(x, height, width)], 1)
        if images.is_contiguous(memory_format=torch.channels_last):
            x = x.contiguous(memory_format=torch.channels_last)
        words, mask, pooled = self.words(*self.text(instructions))
        stem, features = self.image(x)
        logits: Tensor = self.decoder(x, stem, self.fusion(features, words, mask), pooled)
        return logits[..., :height, :width].float()


class Words(nn.Module):
    """Token features to the width of the fusion, each seeing its neighbours.

    A mean over words forgets their order, and "make the red square blue" needs it: a convolution over
    three tokens, before any pooling, tells "red square" from "square blue".
    """

    def __init__(self, text_width: int, width: int) -> None:
        super().__init__()
        self.project = nn.Linear(text_width, width)
        self.neighbours = nn.Conv1d(width, width, 3, padding=1)
        self.norm = nn.LayerNorm(width)

    def forward(self, features: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features (B, T, C) and mask (B, T) → words (B, T, D), the mask, and their mean (B, D)."""
        known = mask[..., None]
        x = self.project(features) * known
        x = self.norm(x + functional.gelu(self.neighbours(x.mT).mT)) * known
        return x, mask, x.sum(1) / known.sum(1)


class ImageEncoder(nn.Module):
    """A torchvision ResNet by name, its first convolution widened by two coordinate channels.

    `channels` are those of the four stages, `stem_channels` those of the features at stride 2.
    """

    # BatchNorm stays BatchNorm: pretrained ResNets were trained with it, and another norm would throw
    # their function away. Its statistics follow the data in training, so the batch of a device should
    # not be tiny (8 or more); the decoder uses it too, so that one rule holds for the whole network.

    def __init__(self, name: str, weights: str) -> None:
        super().__init__()
        net = load_resnet(name, weights)
        self.stem_channels: int = net.conv1.out_channels
        self.stem = nn.Sequential(widen(net.conv1), net.bn1, net.relu)
        self.pool = net.maxpool
        self.stages = nn.ModuleList([net.layer1, net.layer2, net.layer3, net.layer4])
        with torch.no_grad():
            features = self.eval()(torch.zeros(1, 5, 32, 32))[1]
        self.channels = tuple(feature.shape[1] for feature in features)
        self.train()

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """(B, 5, H, W) → (B, C, H/2, W/2) and four of (B, C, H/s, W/s) for s in STRIDES."""
        stem = self.stem(x)
        x = self.pool(stem)
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return stem, features


class Fusion(nn.Module):
    """Cross-attention layers at the strides that the settings name, deepest first."""

    def __init__(self, channels: Sequence[int], settings: FusionSettings) -> None:
        super().__init__()
        fused = sorted(settings.strides, reverse=True)
        each, extra = divmod(settings.layers, len(fused))
        self.project = nn.ModuleDict()
        self.layers = nn.ModuleDict()
        for rank, stride in enumerate(fused):
            self.project[str(stride)] = nn.Conv2d(channels[STRIDES.index(stride)], settings.width, 1)
            count = each + (rank < extra)
            self.layers[str(stride)] = nn.ModuleList(
                CrossAttention(settings.width, settings.heads, settings.dropout) for _ in range(count)
            )
        self.channels = tuple(
            settings.width if stride in fused else channels[i] for i, stride in enumerate(STRIDES)
        )

    def forward(self, features: Sequence[Tensor], words: Tensor, mask: Tensor) -> list[Tensor]:
        """Four of (B, C, h, w), words (B, T, D) and mask (B, T) → the same with D channels where fused."""
        fused = list(features)
        for key, project in self.project.items():
            index = STRIDES.index(int(key))
            grid = project(features[index])
            B, D, h, w = grid.shape
            x = grid.flatten(2).mT
            position = grid_positions(h, w, D, grid.device).to(x.dtype)
            for layer in self.layers[key]:  # type: ignore[attr-defined]
                x = layer(x, position, words, mask)
            fused[index] = x.mT.reshape(B, D, h, w)
        return fused


class CrossAttention(nn.Module):
    """A pre-norm layer: picture positions ask, words answer, then an MLP at each position."""

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

    def forward(self, x: Tensor, position: Tensor, words: Tensor, mask: Tensor) -> Tensor:
        """x (B, N, D), position (N, D), words (B, T, D) and mask bool (B, T), False at pads → (B, N, D)."""
        query = self.ask(self.norm_ask(x) + position).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.answer(words).chunk(2, -1)
        )
        read = functional.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask[:, None, None, :],
            dropout_p=self.dropout if self.training else 0.0,
        )
        x = x + self.out(read.transpose(1, 2).flatten(2))
        y: Tensor = x + self.mlp(self.norm_mlp(x))
        return y


class Decoder(nn.Module):
    """A U-Net decoder from stride 32 to full resolution, each stage modulated by the words (FiLM)."""

    def __init__(
        self, channels: Sequence[int], stem_channels: int, widths: Sequence[int], text_width: int
    ) -> None:
        super().__init__()
        skips = (channels[2], channels[1], channels[0], stem_channels)
        inputs = (channels[3], *widths[:-1])
        self.stages = nn.ModuleList(
            Stage(below, skip, width, text_width)
            for below, skip, width in zip(inputs, skips, widths, strict=True)
        )
        self.head = nn.Conv2d(widths[-1] + 5, 1, 3, padding=1)

    def forward(self, x: Tensor, stem: Tensor, features: Sequence[Tensor], pooled: Tensor) -> Tensor:
        """Input (B, 5, H, W), stem (B, C, H/2, W/2), four features and pooled words (B, D) → (B, 1, H, W)."""
        y = features[3]
        for stage, skip in zip(self.stages, (features[2], features[1], features[0], stem), strict=True):
            stride = x.shape[-1] // skip.shape[-1]
            y = stage(y, skip, functional.avg_pool2d(x[:1, 3:], stride), pooled)
        # The head reads y enlarged and x. Taken apart, its share of y costs a quarter and no plane of y's
        # channels at full resolution is made: those were the largest of the network.
        from_y, from_x = self.head.weight[:, : y.shape[1]], self.head.weight[:, y.shape[1] :]
        coarse = functional.conv2d(y, before_doubling(from_y), padding=1)
        return functional.pixel_shuffle(coarse, 2) + functional.conv2d(x, from_x, self.head.bias, padding=1)


class Stage(nn.Module):
    """Twice as large, joined with the encoder's features, then scaled and shifted channel by channel.

    What comes from below goes through its convolution before it is enlarged, at a quarter of the work.
    FiLM (Perez et al. 2018): the words give each channel a scale and a shift. They start at 1 and 0.
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
        """(B, C, h, w), skip (B, C', 2h, 2w), position (1, 2, 2h, 2w), words (B, D) → (B, width, 2h, 2w)."""
        y = self.norm(upsample(self.below(y)) + self.skip(skip) + self.position(position))
        scale, shift = self.film(pooled)[..., None, None].chunk(2, 1)
        refined: Tensor = self.refine(functional.relu(y * (1 + scale) + shift))
        return refined


def load_resnet(name: str, weights: str) -> torchvision.models.ResNet:
    """A torchvision ResNet with weights `pretrained`, `none` or of a local file. Raises WeightsError."""
    known = torchvision.models.list_models(torchvision.models, include=["*resnet*", "resnext*"])
    if name not in (SMALLEST, *known):
        raise WeightsError(
            f"model.image_encoder: {name!r} is none of torchvision's ResNets: {', '.join([SMALLEST, *known])}"
        )
    if weights == "pretrained":
        if name == SMALLEST:
            raise WeightsError(f"model.image_weights: nobody publishes weights of {name}: set it to none")
        try:
            return torchvision.models.get_model(name, weights="DEFAULT")
        except (OSError, RuntimeError) as error:
            raise cannot_fetch("model.image_weights", name, weights, error) from None
    net = smallest_resnet() if name == SMALLEST else torchvision.models.get_model(name, weights=None)
    if weights != "none":
        state = read_state(weights)
        own = net.state_dict()
        wrong = [key for key, value in own.items() if key not in state or state[key].shape != value.shape]
        wrong = [key for key in wrong if not key.startswith("fc.")]  # the classifier is not used
        if wrong:
            raise WeightsError(
                f"model.image_weights: {weights} does not fit {name}: {len(wrong)} tensors are missing or of "
                f"another shape, first {wrong[0]}"
            )
        net.load_state_dict({key: state[key] for key in own if not key.startswith("fc.")}, strict=False)
    return net


def smallest_resnet() -> torchvision.models.ResNet:
    """The ResNet that SMALLEST names."""
    net = torchvision.models.ResNet(BasicBlock, [1, 1, 1, 1])
    for stage in ("layer3", "layer4"):
        halved = nn.Sequential(nn.Conv2d(128, 128, 1, 2, bias=False), nn.BatchNorm2d(128))
        setattr(net, stage, nn.Sequential(BasicBlock(128, 128, 2, halved)))
    return net


def widen(conv: nn.Conv2d) -> nn.Conv2d:
    """The convolution with two more input channels, their weights zero: its function is unchanged."""
    wider = nn.Conv2d(
        conv.in_channels + 2,
        conv.out_channels,
        conv.kernel_size,  # type: ignore[arg-type]
        conv.stride,  # type: ignore[arg-type]
        conv.padding,  # type: ignore[arg-type]
        bias=False,
    )
    with torch.no_grad():
        wider.weight.zero_()
        wider.weight[:, : conv.in_channels] = conv.weight
    return wider


def coordinates(x: Tensor, height: int, width: int) -> Tensor:
    """(B, C, H, W) → (B, 2, H, W): x and y, from -1 to 1 over the first `width` columns, `height` rows."""
    # arange, not linspace: its length stays dynamic in torch.export.
    across = torch.arange(x.shape[3], device=x.device) * (2 / max(1, width - 1)) - 1
    down = torch.arange(x.shape[2], device=x.device) * (2 / max(1, height - 1)) - 1
    grid = torch.stack([across.expand(x.shape[2], -1), down[:, None].expand(-1, x.shape[3])])
    return grid.to(x.dtype).expand(x.shape[0], -1, -1, -1)


def grid_positions(height: int, width: int, channels: int, device: torch.device) -> Tensor:
    """Sinusoidal position of each cell, relative to the picture → float32 (height·width, channels)."""
    # Scaled to 0..100 over a side, so that "the left half" is the same code in a grid of any size.
    down = sinusoids((torch.arange(height, device=device) + 0.5) * (100 / height), channels // 2)
    across = sinusoids((torch.arange(width, device=device) + 0.5) * (100 / width), channels - channels // 2)
    grid = [down[:, None].expand(-1, width, -1), across[None].expand(height, -1, -1)]
    return torch.cat(grid, -1).flatten(0, 1)


def before_doubling(weight: Tensor) -> Tensor:
    """Weights (O, C, 3, 3) of a convolution of `upsample(x)` → (4·O, C, 3, 3) of one of x itself.

    `pixel_shuffle(…, 2)` of its result is that of the first, exactly: an even row of the enlarged picture
    sees the row above its own and its own twice, an odd one its own twice and the row below; so do columns.
    (Shi et al. 2016, "Is the deconvolution layer the same as a convolutional layer?")
    """
    own = weight.new_tensor([[[1, 0, 0], [0, 1, 1], [0, 0, 0]], [[0, 0, 0], [1, 1, 0], [0, 0, 1]]])
    return torch.einsum("air,bjs,ocrs->oabcij", own, own, weight).flatten(0, 2)


def upsample(x: Tensor) -> Tensor:
    """(B, C, H, W) → (B, C, 2H, 2W), each pixel repeated."""
    # The convolution that always follows smooths it; going backward through bilinear costs a CPU a tenth
    # of its step and gained nothing.
    return functional.interpolate(x, scale_factor=2, mode="nearest")
