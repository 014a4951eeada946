from __future__ import annotations

import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from bananagrams_assets.learn.network import (
    ImageEncoder,
    MaskNet,
    add_coordinate_channels,
    coordinates,
    load_resnet,
    subpixel_weight,
    upsample,
)
from bananagrams_assets.learn.weights import WeightsError

from .tiny import profile


@pytest.fixture(scope="module")
def net() -> MaskNet:
    torch.manual_seed(0)
    return MaskNet(profile().model).eval()


@pytest.mark.parametrize(("height", "width"), [(64, 64), (1, 1), (33, 95), (70, 31)])
def test_logits_have_the_size_of_the_image(net: MaskNet, height: int, width: int) -> None:
    images = torch.randint(0, 256, (2, 3, height, width), dtype=torch.uint8)
    logits = net(images, ["Tint the left half.", "x"])
    assert logits.shape == (2, 1, height, width)
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()


def test_features_have_strides_4_8_16_32(net: MaskNet) -> None:
    stem, features = net.image(torch.zeros(1, 5, 64, 96))
    assert stem.shape == (1, 64, 32, 48)
    assert [tuple(f.shape[1:]) for f in features] == [(64, 16, 24), (128, 8, 12), (128, 4, 6), (128, 2, 3)]


def test_added_coordinate_channels_do_not_change_the_output() -> None:
    conv = nn.Conv2d(3, 8, 7, 2, 3, bias=False)
    x = torch.randn(2, 3, 32, 32)
    wider = add_coordinate_channels(conv)
    assert torch.equal(wider(torch.cat([x, torch.randn(2, 2, 32, 32)], 1)), conv(x))


def test_coordinates_span_the_image_and_continue_in_the_padding() -> None:
    grid = coordinates(torch.zeros(1, 3, 4, 8), 3, 5)
    assert grid[0, 0, 0, [0, 2, 4]].tolist() == [-1, 0, 1]
    assert grid[0, 1, [0, 1, 2], 0].tolist() == [-1, 0, 1]
    assert (grid[0, 0, :, 5:] > 1).all()


@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 6), st.integers(1, 6), st.integers(0, 99))
def test_subpixel_convolution_equals_convolution_of_the_upsampled_input(
    outputs: int, channels: int, height: int, width: int, seed: int
) -> None:
    torch.manual_seed(seed)
    x = torch.randn(2, channels, height, width, dtype=torch.float64)
    weight = torch.randn(outputs, channels, 3, 3, dtype=torch.float64)
    doubled = functional.conv2d(upsample(x), weight, padding=1)
    before = functional.conv2d(x, subpixel_weight(weight), padding=1)
    torch.testing.assert_close(functional.pixel_shuffle(before, 2), doubled)


def test_prediction_does_not_depend_on_the_rest_of_the_batch(net: MaskNet) -> None:
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    alone = net(images[:1], ["Tint the left half."])
    beside = net(images, ["Tint the left half.", "A far longer instruction of many more words."])
    torch.testing.assert_close(alone, beside[:1], rtol=1e-4, atol=1e-4)


def test_word_order_changes_the_pooled_tokens(net: MaskNet) -> None:
    features = net.text(["make the red square blue", "make the blue square red"])
    _, _, pooled = net.words(*features)
    assert (pooled[0] - pooled[1]).abs().max() > 1e-3


def test_instruction_reaches_every_layer_that_uses_it(net: MaskNet) -> None:
    images = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    net(images, ["Tint the left half."]).sum().backward()
    readers = [
        parameter
        for name, parameter in net.named_parameters()
        if name.endswith(("answer.weight", "film.2.weight", "words.project.weight"))
    ]
    assert len(readers) == 2 + 4 + 1
    for weight in readers:
        assert weight.grad is not None
    assert all(weight.grad.abs().sum() > 0 for weight in readers[1:] if weight.grad is not None)
    net.zero_grad()


def test_attention_layers_are_divided_among_the_strides() -> None:
    settings = profile(model__fusion={"width": 32, "heads": 2, "layers": 3, "strides": [8, 32]}).model
    fusion = MaskNet(settings).fusion
    assert {key: len(layers) for key, layers in fusion.layers.items()} == {"32": 2, "8": 1}  # type: ignore[arg-type]
    assert fusion.channels == (64, 32, 128, 32)


def test_unknown_encoder_is_an_error_that_lists_the_available_ones() -> None:
    with pytest.raises(WeightsError, match=r"'vgg16' is not an available ResNet: .*resnet18"):
        load_resnet("vgg16", "none")


def test_resnet10_has_one_block_per_stage_and_no_published_weights() -> None:
    net = load_resnet("resnet10", "none")
    assert [len(stage) for stage in (net.layer1, net.layer2, net.layer3, net.layer4)] == [1, 1, 1, 1]
    with pytest.raises(WeightsError, match="resnet10 has no published weights"):
        load_resnet("resnet10", "pretrained")


def test_local_weights_are_loaded(tmp_path) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(1)
    source = torchvision.models.resnet18()
    save_file(source.state_dict(), tmp_path / "r18.safetensors")
    torch.save({"state_dict": source.state_dict()}, tmp_path / "r18.pth")
    for name in ("r18.safetensors", "r18.pth"):
        loaded = ImageEncoder("resnet18", str(tmp_path / name)).state_dict()
        assert torch.equal(loaded["stem.0.weight"][:, :3], source.conv1.weight)
        assert not loaded["stem.0.weight"][:, 3:].any()
        assert torch.equal(loaded["stages.3.1.conv2.weight"], source.layer4[1].conv2.weight)


def test_local_weights_of_another_network_are_an_error(tmp_path) -> None:  # type: ignore[no-untyped-def]
    save_file(torchvision.models.resnet34().state_dict(), tmp_path / "r34.safetensors")
    with pytest.raises(WeightsError, match=r"r34.safetensors does not fit resnet50: \d+ of \d+ tensors"):
        load_resnet("resnet50", str(tmp_path / "r34.safetensors"))


@pytest.mark.parametrize("name", ["missing.safetensors", "broken.safetensors", "broken.pth"])
def test_error_names_the_unreadable_weights_file(tmp_path, name: str) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "broken.safetensors").write_bytes(b"nonsense")
    (tmp_path / "broken.pth").write_bytes(b"nonsense")
    with pytest.raises(WeightsError, match=f"weights file .*{name} (does not exist|cannot be read)"):
        load_resnet("resnet18", str(tmp_path / name))


def test_pickled_objects_are_not_loaded(tmp_path) -> None:  # type: ignore[no-untyped-def]
    torch.save(nn.Linear(1, 1), tmp_path / "whole.pth")
    with pytest.raises(WeightsError, match="cannot be read"):
        load_resnet("resnet18", str(tmp_path / "whole.pth"))


def test_failed_download_lists_the_three_choices(  # type: ignore[no-untyped-def]
    tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with pytest.raises(WeightsError) as raised:
        load_resnet("resnet18", "pretrained")
    message = str(raised.value)
    assert "\n" not in message
    for choice in ("model.image_weights: pretrained on a machine with network", "PATH", "none"):
        assert choice in message
