from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bananagrams_assets.config import ConfigError, Profile, digest_of
from bananagrams_assets.profiles import load_profile, parse_setting, validate


@pytest.mark.parametrize("name", ["demo", "pico-banana"])
def test_bundled_profiles_are_valid(name: str) -> None:
    assert load_profile(name).profile.shard_keys()


def test_demo_has_four_train_shards_one_dev_one_test() -> None:
    keys = load_profile("demo").profile.shard_keys()
    assert keys == ["train-00000", "train-00001", "train-00002", "train-00003", "dev-00000", "test-00000"]


def test_pico_banana_has_about_a_thousand_pairs_per_shard() -> None:
    profile = load_profile("pico-banana").profile
    for split in profile.splits.by_name().values():
        assert 900 <= 257_730 * split.ratio / split.shards <= 1100


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"mask.blur_kernal_px": 3}, "mask.blur_kernal_px: unknown key; did you mean 'blur_kernel_px'?"),
        ({"masks.x": 3}, "masks: unknown key; did you mean 'mask'? allowed here: align,"),
        ({"mask.blur_kernel_px": 4}, "mask.blur_kernel_px: must be odd"),
        (
            {"mask.smallest_component": 1.5},
            "mask.smallest_component: 1.5 is not allowed: input should be less",
        ),
        ({"mask.threshold_low": 20.0}, "mask: threshold_low and noise_low must not exceed"),
        (
            {"train.batch_size": "many"},
            "train.batch_size: 'many' is not allowed: input should be a valid int",
        ),
        ({"train.batch_size": True}, "train.batch_size: True is not allowed"),
        (
            {"train.optimizer": "lion"},
            "train.optimizer: 'lion' is not allowed: input should be 'adamw', 'adam'",
        ),
        ({"train.side_px": 100}, "train.side_px: 100 is not allowed: input should be a multiple of 32"),
        (
            {"splits.train.ratio": 0.9},
            "splits: train.ratio + dev.ratio + test.ratio is 1.3; they must sum to 1",
        ),
        ({"model.fusion.heads": 3}, "model.fusion: width 128 must be a multiple of heads 3"),
        ({"source.cdn_prefix": "ftp://x/"}, "source.cdn_prefix: 'ftp://x/' is not allowed"),
        ({"mask": 3}, "mask: 3 is not allowed"),
    ],
)
def test_an_invalid_setting_is_rejected_with_its_path_and_the_allowed_values(
    override: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_profile("demo", override)
    assert message in str(caught.value)


def test_all_invalid_settings_are_named_in_one_error() -> None:
    with pytest.raises(ConfigError, match=r"mask\.open_px.*train\.epochs"):
        load_profile("demo", {"mask.open_px": 2, "train.epochs": 0})


def test_an_unknown_profile_names_the_bundled_ones() -> None:
    with pytest.raises(ConfigError, match=r"'nope' does not exist.*demo, pico-banana"):
        load_profile("nope")


@pytest.mark.parametrize("text", ["- a\n- b\n", "mask: [unclosed", "just words"])
def test_a_file_that_is_not_a_mapping_is_rejected_by_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"mine\.yaml"):
        load_profile(str(path))


def test_an_unknown_empty_section_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("masks: {}\nmask: {}\n")
    with pytest.raises(ConfigError, match=r"masks: unknown key; did you mean 'mask'"):
        load_profile(str(path))


def test_later_layers_override_earlier_ones_and_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("mask: {blur_kernel_px: 5, open_px: 3, close_px: 9}\n")
    monkeypatch.setenv("BANANAGRAMS_SET", "mask.open_px=5\nmask.close_px=11")
    monkeypatch.setenv("BANANAGRAMS_STORE", "s3://bucket/prefix")
    loaded = load_profile(str(path), {"mask.close_px": 13})
    mask = loaded.profile.mask
    assert (mask.blur_kernel_px, mask.open_px, mask.close_px) == (5, 5, 13)
    assert loaded.profile.store.url == "s3://bucket/prefix"
    assert loaded.sources["mask.blur_kernel_px"] == str(path)
    assert loaded.sources["mask.open_px"] == "environment BANANAGRAMS_SET"
    assert loaded.sources["mask.close_px"] == "command line"
    assert "mask.border_px" not in loaded.sources


def test_operational_settings_do_not_change_a_digest() -> None:
    profile = Profile()
    assert load_profile("demo", {"fetch.concurrency": 2}).profile.fetch.digest() == profile.fetch.digest()
    assert load_profile("demo", {"fetch.max_bytes": 4096}).profile.fetch.digest() != profile.fetch.digest()


def test_settings_in_text_form_are_yaml() -> None:
    assert parse_setting("source.edit_types=[a, b]") == ("source.edit_types", ["a", "b"])
    assert parse_setting("fetch.largest_side_px=null") == ("fetch.largest_side_px", None)
    with pytest.raises(ConfigError, match="expected KEY=VALUE"):
        parse_setting("mask.open_px")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(st.dictionaries(st.sampled_from(list(Profile.model_fields)) | st.text(), json_values, max_size=3))
def test_any_content_gives_a_profile_or_a_config_error(content: dict[str, Any]) -> None:
    try:
        profile = validate(content)
    except ConfigError:
        return
    assert profile.shard_keys()


def test_a_dumped_profile_loads_unchanged() -> None:
    profile = load_profile("demo").profile
    assert validate(profile.model_dump(mode="json")) == profile


@given(st.dictionaries(st.text(), json_values))
def test_digests_do_not_depend_on_the_order_of_keys(content: dict[str, Any]) -> None:
    assert digest_of(content) == digest_of(dict(reversed(content.items())))
