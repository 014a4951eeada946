from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bananagrams_assets.config import ModelSettings
from bananagrams_assets.learn.text import RandomTokens, TextTower, build_text_encoder, token_mask
from bananagrams_assets.learn.weights import WeightsError

from .tiny import profile

TOWER = "ViT-S-32-alt"  # one of open_clip's smallest: width 256
PUBLISHED = "ViT-B-32"


def tower(**settings: object) -> ModelSettings:
    return ModelSettings(text_encoder=TOWER, text_weights="none", text_context=10, **settings)  # type: ignore[arg-type]


def test_pads_are_zero_and_the_batch_has_the_length_of_its_longest_text() -> None:
    features, mask = build_text_encoder(profile().model)(["cat", "a red cat on the left"])
    assert features.shape == (2, 8, 32)  # start, six words, end
    assert mask.sum(1).tolist() == [3, 8]
    assert not features[~mask].any()


def test_long_instructions_are_truncated_to_the_context() -> None:
    features, mask = build_text_encoder(profile().model)(["word " * 100])
    assert features.shape == (1, 12, 32)
    assert mask.all()


def test_random_embeddings_are_reproducible() -> None:
    codes = RandomTokens(8, 12).codes
    assert codes.shape == (49408, 8)
    assert codes[:2].tolist() == [[-1, 1, -1, 1, 1, 1, 1, 1], [1, -1, -1, -1, -1, -1, 1, -1]]
    assert bool((codes.abs() == 1).all())


def test_pad_id_inside_a_text_is_a_token() -> None:
    ids = torch.tensor([[5, 0, 7, 0], [0, 0, 0, 0]])
    assert token_mask(ids, 0).tolist() == [[True, True, True, False], [False] * 4]


def test_each_distinct_instruction_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = build_text_encoder(profile().model)
    encoded: list[str] = []
    encode = encoder.encode

    def recording_encode(texts):  # type: ignore[no-untyped-def]
        encoded.extend(texts)
        return encode(texts)

    monkeypatch.setattr(encoder, "encode", recording_encode)
    first, _ = encoder(["a", "b", "a"])
    second, _ = encoder(["b", "a", "a"])
    assert encoded == ["a", "b"]
    assert torch.equal(first[0], second[1])


def test_full_cache_evicts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = build_text_encoder(profile().model)
    encoder.cache_bytes = 1
    expected, _ = encoder(["a", "b"])
    again, _ = encoder(["a", "b"])
    assert torch.equal(expected, again)
    assert len(encoder._cache) == 1


@pytest.fixture(scope="module")
def frozen() -> TextTower:
    encoder = build_text_encoder(tower())
    assert isinstance(encoder, TextTower)
    return encoder


def test_tower_returns_its_last_hidden_states(frozen: TextTower) -> None:
    encoder = frozen
    features, mask = encoder(["cat", "a red cat"])
    assert features.shape == (2, 5, 256)
    assert mask.sum(1).tolist() == [3, 5]
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    assert not encoder.train().tower.training


def test_frozen_tower_is_exact_in_half_precision(frozen: TextTower) -> None:
    for value in frozen.state_dict().values():
        assert torch.equal(value.half().float(), value)


def test_features_do_not_depend_on_the_batch_or_on_autocast(frozen: TextTower) -> None:
    texts = ["a red cat", "remove the dog on the left", "cat", "write hello at the top"]
    frozen._cache.clear()
    together, mask = frozen(texts)
    for i, text in enumerate(texts):
        frozen._cache.clear()
        with torch.autocast("cpu", torch.bfloat16):
            alone, _ = frozen([text])
        assert torch.equal(alone[0], together[i][mask[i]])


def test_only_the_last_tower_layers_train_and_nothing_is_cached() -> None:
    encoder = build_text_encoder(tower(train_text_layers=2))
    assert isinstance(encoder, TextTower)
    features, _ = encoder.train()(["cat", "a dog"])
    features.sum().backward()
    layers = encoder.tower.transformer.resblocks  # type: ignore[union-attr]
    assert all(p.grad is not None for layer in layers[-2:] for p in layer.parameters())  # type: ignore[index]
    assert not any(p.requires_grad for layer in layers[:-2] for p in layer.parameters())  # type: ignore[index]
    assert not encoder.tower.token_embedding.weight.requires_grad  # type: ignore[union-attr]
    assert not encoder._cache
    with pytest.raises(WeightsError, match=r"ViT-S-32-alt has \d+ layers, fewer than 40"):
        build_text_encoder(tower(train_text_layers=40))


def test_tower_weights_are_loaded_from_a_local_file(frozen: TextTower, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    state = {f"text.{name}": value for name, value in frozen.tower.state_dict().items()}
    save_file(state, tmp_path / "clip.safetensors")
    settings = tower().model_copy(update={"text_weights": str(tmp_path / "clip.safetensors")})
    expected, _ = frozen(["a red cat"])
    loaded, _ = build_text_encoder(settings)(["a red cat"])
    torch.testing.assert_close(expected, loaded)  # batch size changes the order of sums
    del state["text.ln_final.weight"]
    save_file(state, tmp_path / "clip.safetensors")
    with pytest.raises(WeightsError, match=r"does not fit \S+: 1 of \d+ tensors .* first ln_final.weight"):
        build_text_encoder(settings)


def test_unknown_name_error_lists_what_is_allowed() -> None:
    with pytest.raises(WeightsError, match="neither `tokens` nor a model of open_clip"):
        build_text_encoder(ModelSettings(text_encoder="ViT-Z-99"))
    with pytest.raises(
        WeightsError, match=r"'laion9b' is neither `none`, nor a local file, nor one of .*openai"
    ):
        build_text_encoder(ModelSettings(text_encoder=PUBLISHED, text_weights="laion9b"))


def test_failed_download_lists_the_three_choices_without_retries(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from huggingface_hub import constants

    sleeps: list[object] = []
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # closed port
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("time.sleep", sleeps.append)  # a retry would wait
    with pytest.raises(WeightsError) as raised:
        build_text_encoder(ModelSettings(text_encoder=PUBLISHED, text_weights="openai"))
    message = str(raised.value)
    assert "\n" not in message
    for part in ("openai on a machine with network", "PATH of a local file", "model.text_weights: none"):
        assert part in message
    assert not sleeps
    assert not constants.HF_HUB_OFFLINE
