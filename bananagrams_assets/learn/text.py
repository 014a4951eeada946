"""Text encoders: an open_clip text tower by name, or frozen random token embeddings."""

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
from .weights import WeightsError, fetch_error, first_line, read_weights

CACHE_BYTES = 256 * 2**20
HUB_TIMEOUT_S = 5


class TextEncoder(nn.Module, ABC):
    """Computes token features of instructions; a frozen encoder caches those of each distinct instruction.

    `width`: channels C of a feature. `context`: maximum number of tokens T of an instruction; further tokens
    are ignored. `cache_bytes`: maximum size of the cache, which holds float16 features.
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
        """Return features float32 (N, T, C) and mask bool (N, T), True at tokens, of N instructions."""

    def forward(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return features float32 (B, L, C), zero at pads, and mask bool (B, L), True at tokens.

        L ≤ T is the number of tokens of the longest of the B instructions.
        """
        if not self.frozen:
            features, mask = self.encode(texts)
            longest = int(mask.sum(1).max())
            return features[:, :longest] * mask[:, :longest, None], mask[:, :longest]
        missing = [text for text in dict.fromkeys(texts) if text not in self._cache]
        computed = dict(zip(missing, self._compute(missing), strict=True))
        for text, tokens in computed.items():
            # A full cache evicts nothing: epochs cycle through the instructions, so evicting the oldest would
            # miss every time if not all instructions fit.
            if self._cached_bytes < self.cache_bytes:
                self._cache[text] = tokens
                self._cached_bytes += tokens.nbytes
        sequences = [self._cache[text] if text in self._cache else computed[text] for text in texts]
        features = nn.utils.rnn.pad_sequence(sequences, batch_first=True).float()
        lengths = torch.tensor([len(tokens) for tokens in sequences], device=features.device)
        return features, torch.arange(features.shape[1], device=features.device) < lengths[:, None]

    def _compute(self, texts: Sequence[str]) -> list[Tensor]:
        """Return each instruction's frozen features, float16 (tokens, C)."""
        # The rounding of a matrix product depends on its number of rows. On a CPU a resumed run must end
        # with the same bits, so each instruction is computed alone: its features must not depend on which
        # other instructions were missing in the cache. For the same reason an enclosing autocast is
        # disabled.
        device = next((tensor.device for tensor in (*self.parameters(), *self.buffers())), None)
        size = 1 if device is None or device.type == "cpu" else len(texts)
        sequences: list[Tensor] = []
        with torch.no_grad(), torch.autocast("cpu" if device is None else device.type, enabled=False):
            for start in range(0, len(texts), max(1, size)):
                features, mask = self.encode(texts[start : start + size])
                sequences += [row[is_token].half() for row, is_token in zip(features, mask, strict=True)]
        return sequences

    def _apply(self, fn, recurse=True):  # type: ignore[no-untyped-def]
        self._cache, self._cached_bytes = {}, 0  # cached features would stay on the old device
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]


class RandomTokens(TextEncoder):
    """Frozen random embeddings of CLIP's byte-pair tokens plus sinusoidal position encodings.

    Random embeddings of distinct tokens are nearly orthogonal, so the network learns each token separately.
    With little data this is better than a text tower without pretrained weights. The embeddings are signs ±1
    from PCG64's raw stream, which numpy guarantees to be the same in every version, so checkpoints do not
    store them.
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
        """See TextEncoder.encode; pads have the features of token 0."""
        ids = self._tokenizer(list(texts), context_length=self.context).to(self.codes.device)
        positions = sinusoids(torch.arange(self.context, device=ids.device).float(), self.width)
        return self.codes[ids].float() + positions, token_mask(ids, 0)


class TextTower(TextEncoder):
    """The last hidden states of an open_clip text tower; its last `trained` layers are trainable."""

    def __init__(self, name: str, tower: nn.Module, context: int, trained: int) -> None:
        import open_clip

        tower_context = int(getattr(tower, "context_length", 77))
        with torch.no_grad():
            tokenizer = open_clip.get_tokenizer(name)
            probe = tower(tokenizer([""], context_length=tower_context))[1]
        super().__init__(probe.shape[-1], min(context, tower_context), frozen=not trained)
        self._tokenizer = tokenizer
        self._tower_context = tower_context
        config = getattr(tower, "config", None)
        pad = getattr(config, "pad_token_id", None) if config is not None else getattr(tower, "pad_id", 0)
        self._pad = 0 if pad is None else int(pad)
        # Frozen weights are rounded to half precision, as OpenAI published them: checkpoints are half as
        # large.
        self.tower = tower.half().float().eval().requires_grad_(False)
        if trained:
            blocks = _transformer_layers(name, tower)
            if trained > len(blocks):
                raise WeightsError(
                    f"model.train_text_layers: {name} has {len(blocks)} layers, fewer than {trained}"
                )
            # A tower with a class token returns token features from before its last norm.
            final = None if getattr(tower, "cls_emb", None) is not None else getattr(tower, "ln_final", None)
            for part in (*blocks[-trained:], final):
                if part is not None:
                    part.requires_grad_()

    def train(self, mode: bool = True) -> TextTower:
        """Set the mode but keep the tower in evaluation mode, so that frozen features can be cached."""
        super().train(mode)
        self.tower.eval()
        return self

    def encode(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """See TextEncoder.encode; returns the first T tokens of the tower's full context."""
        device = next(self.tower.parameters()).device
        ids = self._tokenizer(list(texts), context_length=self.context).to(device)
        mask = token_mask(ids, self._pad)
        ids = nn.functional.pad(ids, (0, self._tower_context - self.context), value=self._pad)
        _, tokens = self.tower(ids)
        return tokens[:, : self.context].float(), mask


def build_text_encoder(settings: ModelSettings, fetch: bool = True) -> TextEncoder:
    """Return the profile's text encoder; with `fetch` false, with random weights for a checkpoint to replace.

    Raises WeightsError for an unknown name or tag, a failed download, or a file that does not fit the model.
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
    # The weights do not determine the activation: OpenAI's need QuickGELU, under the same model name.
    tag = weights if weights in tags else settings.text_weights
    quick_gelu = bool(open_clip.get_pretrained_cfg(name, tag).get("quick_gelu", False))
    with _library_messages_suppressed(), _offline_if_unreachable(needed=weights in tags):
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
            raise fetch_error("model.text_weights", name, weights, error) from None
        tower = model.text
        tower.output_tokens = True
        if _is_path(weights):
            # A file of the tower alone, or of a CLIP model in either of open_clip's two layouts.
            own = tower.state_dict()
            tower.load_state_dict(read_weights("model.text_weights", weights, name, own, prefix="text."))
        return TextTower(name, tower, settings.text_context, settings.train_text_layers)


def token_mask(ids: Tensor, pad: int) -> Tensor:
    """Return bool (B, T), False at trailing pads of ids (B, T); the pad's id inside a text is a token."""
    return (ids != pad).flip(1).cumsum(1).flip(1) > 0


def sinusoids(positions: Tensor, width: int) -> Tensor:
    """Return the encoding float32 (…, width) of positions (…) (Vaswani et al. 2017, section 3.5)."""
    half = width // 2
    rates = torch.exp(torch.arange(half, device=positions.device) * (-np.log(10000.0) / max(1, half - 1)))
    angles = positions[..., None] * rates
    return nn.functional.pad(torch.cat([angles.sin(), angles.cos()], -1), (0, width - 2 * half))


def _is_path(weights: str) -> bool:
    return weights != "none" and ("/" in weights or weights.endswith((".safetensors", ".pt", ".pth", ".bin")))


def _transformer_layers(name: str, tower: nn.Module) -> nn.ModuleList:
    """Return a tower's transformer layers, first to last. Raises WeightsError if it has another structure."""
    blocks = getattr(getattr(tower, "transformer", None), "resblocks", None)
    if not isinstance(blocks, nn.ModuleList):
        raise WeightsError(f"model.train_text_layers: {name} has no separate layers to train; set it to 0")
    return blocks


@contextmanager
def _offline_if_unreachable(needed: bool) -> Iterator[None]:
    """Set the Hugging Face hub's client offline if the hub is unreachable, which avoids a minute of retries.

    Weights in its cache are still used.
    """
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    try:
        if needed and not before:
            constants.HF_HUB_OFFLINE = not _is_reachable(constants.ENDPOINT)
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _is_reachable(url: str) -> bool:
    """Return whether a server responds at a URL, also with an error status."""
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=HUB_TIMEOUT_S).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


@contextmanager
def _library_messages_suppressed() -> Iterator[None]:
    """Suppress the libraries' messages about retries and loading; failures raise errors anyway."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        before = logging.root.manager.disable
        logging.disable(logging.ERROR)
        try:
            yield
        finally:
            logging.disable(before)
