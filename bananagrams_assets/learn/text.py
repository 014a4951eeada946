"""Instructions → token features: an open_clip text tower by name, or frozen random token embeddings."""

from __future__ import annotations

import logging
import urllib.error
import urllib.request
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from ..config import ModelSettings
from .weights import WeightsError, cannot_fetch, first_line, read_state

CACHE_BYTES = 256 * 2**20
HUB_TIMEOUT_S = 5


class TextEncoder(nn.Module, ABC):
    """Token features of instructions; a frozen encoder computes each distinct instruction once.

    `width` is the channels C of a feature, `context` the most tokens T read of an instruction,
    `cache_bytes` how much memory the features of a frozen encoder may take, at half precision.
    """

    def __init__(self, width: int, context: int, frozen: bool) -> None:
        super().__init__()
        self.width = width
        self.context = context
        self.frozen = frozen
        self.cache_bytes = CACHE_BYTES
        self._cache: dict[str, Tensor] = {}
        self._cached_bytes = 0

    @abstractmethod
    def encode(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """N instructions → features float32 (N, T, C) and mask bool (N, T), True where a token is."""

    def forward(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """B instructions → features float32 (B, L, C), zero at pads, and mask bool (B, L).

        The mask is True where a token is. L ≤ T is the longest instruction's tokens: the rest of the
        context would be pads alone.
        """
        if not self.frozen:
            features, mask = self.encode(texts)
            longest = int(mask.sum(1).max())
            return features[:, :longest] * mask[:, :longest, None], mask[:, :longest]
        missing = [text for text in dict.fromkeys(texts) if text not in self._cache]
        fresh = dict(zip(missing, self._compute(missing), strict=True))
        for text, rows in fresh.items():
            # A full cache keeps what it has: epochs cycle through the instructions, and evicting
            # the oldest of a cycle that does not fit would miss every time.
            if self._cached_bytes < self.cache_bytes:
                self._cache[text] = rows
                self._cached_bytes += rows.nbytes
        rows_of = [self._cache[text] if text in self._cache else fresh[text] for text in texts]
        features = nn.utils.rnn.pad_sequence(rows_of, batch_first=True).float()
        lengths = torch.tensor([len(rows) for rows in rows_of], device=features.device)
        return features, torch.arange(features.shape[1], device=features.device) < lengths[:, None]

    def _compute(self, texts: Sequence[str]) -> list[Tensor]:
        """The frozen features of each instruction, float16 (tokens, C)."""
        # A matrix product rounds differently with the number of its rows. On a CPU, where a resumed run ends
        # with the same bits, each instruction is computed alone: what it gives must not depend on which
        # others happened to be new. For the same reason an autocast around this call does not reach it.
        device = next((tensor.device for tensor in (*self.parameters(), *self.buffers())), None)
        size = 1 if device is None or device.type == "cpu" else len(texts)
        rows: list[Tensor] = []
        with torch.no_grad(), torch.autocast("cpu" if device is None else device.type, enabled=False):
            for start in range(0, len(texts), max(1, size)):
                features, mask = self.encode(texts[start : start + size])
                rows += [each[known].half() for each, known in zip(features, mask, strict=True)]
        return rows

    def _apply(self, fn, recurse=True):  # type: ignore[no-untyped-def]
        self._cache, self._cached_bytes = {}, 0  # cached features stay on the old device
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]


class RandomTokens(TextEncoder):
    """Frozen random embeddings of CLIP's byte-pair tokens, with sinusoidal positions added.

    Random codes of distinct words are nearly orthogonal, so what reads them learns each word by itself;
    with little data this beats a text tower without pretrained weights. The codes are signs ±1 drawn
    from PCG64's raw stream, which numpy keeps the same in every version, so no checkpoint stores them.
    """

    codes: Tensor

    def __init__(self, width: int, context: int) -> None:
        super().__init__(width, context, frozen=True)
        import open_clip

        self._tokenizer = open_clip.SimpleTokenizer()
        count = self._tokenizer.vocab_size * width
        raw = np.asarray(np.random.PCG64(0).random_raw(-(-count // 64)), dtype="<u8").view(np.uint8)
        signs = np.unpackbits(raw)[:count].reshape(-1, width).astype(np.int8) * 2 - 1
        self.register_buffer("codes", torch.from_numpy(signs), persistent=False)

    def encode(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """See TextEncoder.encode; pads carry the features of token 0."""
        ids = self._tokenizer(list(texts), context_length=self.context).to(self.codes.device)
        positions = sinusoids(torch.arange(self.context, device=ids.device).float(), self.width)
        return self.codes[ids].float() + positions, until_last(ids != 0)


class TextTower(TextEncoder):
    """A text tower of open_clip, its last hidden states as features; its last `trained` layers learn."""

    def __init__(self, name: str, tower: nn.Module, context: int, trained: int) -> None:
        import open_clip

        self_context = int(getattr(tower, "context_length", 77))
        with torch.no_grad():
            tokenizer = open_clip.get_tokenizer(name)
            probe = tower(tokenizer([""], context_length=self_context))[1]
        super().__init__(probe.shape[-1], min(context, self_context), frozen=not trained)
        self._tokenizer = tokenizer
        self._tower_context = self_context
        config = getattr(tower, "config", None)
        pad = getattr(config, "pad_token_id", None) if config is not None else getattr(tower, "pad_id", 0)
        self._pad = 0 if pad is None else int(pad)
        # Frozen weights are kept at half precision, as OpenAI's were published: their file is half as large.
        self.tower = tower.half().float().eval().requires_grad_(False)
        if trained:
            blocks = _blocks(name, tower)
            if trained > len(blocks):
                raise WeightsError(
                    f"model.train_text_layers: {name} has {len(blocks)} layers, {trained} cannot train"
                )
            # A tower with a class token gives its tokens before the last norm, which has no part in them.
            final = None if getattr(tower, "cls_emb", None) is not None else getattr(tower, "ln_final", None)
            for part in (*blocks[-trained:], final):
                if part is not None:
                    part.requires_grad_()

    def train(self, mode: bool = True) -> TextTower:
        """The tower stays in evaluation mode, so that features of a frozen one can be computed once."""
        super().train(mode)
        self.tower.eval()
        return self

    def encode(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """See TextEncoder.encode; of the tower's full context the first T tokens are kept."""
        device = next(self.tower.parameters()).device
        ids = self._tokenizer(list(texts), context_length=self.context).to(device)
        known = until_last(ids != self._pad)
        ids = nn.functional.pad(ids, (0, self._tower_context - self.context), value=self._pad)
        _, tokens = self.tower(ids)
        return tokens[:, : self.context].float(), known


def build_text_encoder(settings: ModelSettings, fetch: bool = True) -> TextEncoder:
    """The profile's text encoder; with `fetch` false without initial weights (a checkpoint brings them).

    Raises WeightsError: an unknown name or tag, weights that cannot be fetched, a file that does not fit.
    """
    if settings.text_encoder == "tokens":
        return RandomTokens(settings.text_width, settings.text_context)
    import open_clip

    name, weights = settings.text_encoder, settings.text_weights if fetch else "none"
    if name not in open_clip.list_models():
        raise WeightsError(
            f"model.text_encoder: {name!r} is neither `tokens` nor a model of open_clip "
            f"(for example ViT-B-32, ViT-L-14; all: open_clip.list_models())"
        )
    tags = open_clip.list_pretrained_tags_by_model(name)
    if weights not in ("none", *tags) and not _is_path(weights):
        raise WeightsError(
            f"model.text_weights: {weights!r} is neither `none`, nor a local file, nor one of open_clip's "
            f"tags for {name}: {', '.join(tags)}"
        )
    # The activation is not in the weights: OpenAI's were trained with QuickGELU under the same model name.
    tag = weights if weights in tags else settings.text_weights
    quick_gelu = bool(open_clip.get_pretrained_cfg(name, tag).get("quick_gelu", False))
    with _quiet(), _hub(needed=weights in tags):
        try:
            model = open_clip.create_model(
                name,
                pretrained=weights if weights in tags else None,
                pretrained_text=False,
                force_quick_gelu=quick_gelu,
                force_custom_text=True,
            )
        except (RuntimeError, OSError, ValueError) as error:
            if weights == "none":
                raise WeightsError(
                    f"model.text_encoder: {name} cannot be built: {first_line(error)}"
                ) from None
            raise cannot_fetch("model.text_weights", name, weights, error) from None
        tower = model.text
        tower.output_tokens = True
        if _is_path(weights):
            _load_tower(tower, weights)
        return TextTower(name, tower, settings.text_context, settings.train_text_layers)


def until_last(known: Tensor) -> Tensor:
    """Bool (B, T) → bool (B, T): True up to the last True; a pad's id inside a text is no pad."""
    return known.flip(1).cumsum(1).flip(1) > 0


def sinusoids(positions: Tensor, width: int) -> Tensor:
    """Positions (…) → float32 (…, width): sines and cosines (Vaswani et al. 2017, section 3.5)."""
    half = width // 2
    rates = torch.exp(torch.arange(half, device=positions.device) * (-np.log(10000.0) / max(1, half - 1)))
    angles = positions[..., None] * rates
    return nn.functional.pad(torch.cat([angles.sin(), angles.cos()], -1), (0, width - 2 * half))


def _is_path(weights: str) -> bool:
    return weights != "none" and ("/" in weights or weights.endswith((".safetensors", ".pt", ".pth", ".bin")))


def _load_tower(tower: nn.Module, path: str) -> None:
    """A file of the tower alone, or of a whole CLIP model in either of open_clip's two layouts."""
    state = read_state(path)
    own = tower.state_dict()
    under_text = {name.removeprefix("text."): value for name, value in state.items()}
    state = {name: value for name, value in under_text.items() if name in own}
    lacking = [name for name, value in own.items() if name not in state or state[name].shape != value.shape]
    if lacking:
        raise WeightsError(
            f"model.text_weights: {path} is of another architecture: {len(lacking)} of {len(own)} tensors "
            f"are missing or of another shape, first {lacking[0]}"
        )
    tower.load_state_dict(state)


def _blocks(name: str, tower: nn.Module) -> nn.ModuleList:
    """The transformer layers of a tower, first to last. Raises WeightsError if it does not show them."""
    blocks = getattr(getattr(tower, "transformer", None), "resblocks", None)
    if not isinstance(blocks, nn.ModuleList):
        raise WeightsError(f"model.train_text_layers: the layers of {name} cannot be told apart; set it to 0")
    return blocks


@contextmanager
def _hub(needed: bool) -> Iterator[None]:
    """Keep the Hugging Face hub's client from its minute of retries where the hub cannot be reached.

    Weights that are in its cache are used all the same.
    """
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    try:
        if needed and not before:
            constants.HF_HUB_OFFLINE = not _answers(constants.ENDPOINT)
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _answers(url: str) -> bool:
    """Whether a server answers there, be it with an error."""
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=HUB_TIMEOUT_S).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back the libraries' retry and loading messages; what matters comes as an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        before = logging.root.manager.disable
        logging.disable(logging.ERROR)
        try:
            yield
        finally:
            logging.disable(before)
