from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bananagrams_assets.config import SourceSettings, SplitSettings, SplitsSettings
from bananagrams_assets.records import manifest_line, splits
from bananagrams_assets.records.manifest_line import Source, parse_line, record_key
from bananagrams_assets.records.open_images import Photos
from bananagrams_assets.records.record import Record, Reject
from bananagrams_assets.records.splits import shard_assigner, source_id

from ..photos import record

CDN = "https://cdn.example.org/nb/"
PHOTOS = Photos(SourceSettings())
SPLITS = SplitsSettings()
ASSIGN_SHARD = shard_assigner(SPLITS)
REMOTE = Source("https://example.org/sft.jsonl", None, CDN, PHOTOS, ASSIGN_SHARD)


def parse(content: Any, source: Source = REMOTE) -> Record | Reject:
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    (parsed,) = parse_line(data, 7, source)
    return parsed


def reason_of(content: Any, source: Source = REMOTE) -> str:
    parsed = parse(content, source)
    assert isinstance(parsed, Reject)
    assert (parsed.line, parsed.manifest) == (7, source.name)
    return parsed.reason


def test_a_record_of_the_public_manifest() -> None:
    parsed = parse(record(1))
    assert isinstance(parsed, Record)
    assert (parsed.kind, parsed.turn, parsed.line) == ("sft", 0, 7)
    assert (parsed.edit_type, parsed.category, parsed.scope) == (
        "Remove an existing object",
        "Object",
        "local",
    )
    assert parsed.output_url == f"{CDN}images/positive-edit/1.png"
    assert parsed.summary == "Flag removed."
    assert parsed.shard.startswith(f"{parsed.split}-")
    assert (parsed.local_input, parsed.local_output) == ("", "")


def test_a_preference_record_gives_its_accepted_pair() -> None:
    parsed = parse(record(1, rejected_images=["images/negative-edit/1.png"]))
    assert isinstance(parsed, Record)
    assert parsed.kind == "preference"
    assert parsed.key.startswith("preference-1-")


@pytest.mark.parametrize(
    "name", ["text", "output_image", "edit_type", "summarized_text", "open_image_input_url"]
)
@pytest.mark.parametrize(
    ("value", "word"), [(..., "missing"), (None, "null"), ("", "empty"), ("  ", "empty"), (3, "not a string")]
)
def test_a_field_must_contain_text(name: str, value: Any, word: str) -> None:
    content = record(1, **{name: value}) if value is not None else {**record(1), name: None}
    reason = reason_of(content)
    assert name in reason
    assert word in reason


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b'{"text": ', "broken JSON"),
        (b"nothing of the kind", "broken JSON"),
        (b"[1, 2]", "not a JSON object"),
        (b'"text"', "not a JSON object"),
        (b"\xff\xfe{}", "not UTF-8"),
        (b"[" * 100_000, "broken JSON"),
        (b'{"a": ' + b"9" * 10_000 + b"}", ""),
        (b'{"files": [], "metadata_edit_turn_prompts": []}', "files lacks an image: original_input_image"),
    ],
)
def test_an_invalid_line_is_rejected_with_a_reason(data: bytes, words: str) -> None:
    assert words in reason_of(data)


@pytest.mark.parametrize(
    "url",
    [
        "ftp://example.org/a.jpg",
        "file:///etc/passwd",
        "/photos/a.jpg",
        "photos/a.jpg",
        "https://",
        "https:///a.jpg",
        "https://user:secret@example.org/a.jpg",
        "https://example.org:port/a.jpg",
        "https://[::1/a.jpg",
        "https://example.org/a b.jpg",
        "https://example.org/a\nb.jpg",
        "javascript:alert(1)",
    ],
)
def test_invalid_urls_are_rejected(url: str) -> None:
    assert "open_image_input_url" in reason_of(record(1, open_image_input_url=url))


@pytest.mark.parametrize(
    "name",
    ["../1.png", "images/../../1.png", "/etc/1.png", "C:/1.png", "https://example.org/1.png", "a\\b.png",
     "a//b.png", "./1.png", "a\x00b.png", "a\nb.png"],
)  # fmt: skip
def test_an_output_image_outside_its_folder_is_rejected(name: str) -> None:
    assert "output_image" in reason_of(record(1, output_image=name))


def test_an_output_name_is_escaped_in_its_url() -> None:
    parsed = parse(record(1, output_image="images/ä b#1?.png"))
    assert isinstance(parsed, Record)
    assert parsed.output_url == f"{CDN}images/%C3%A4%20b%231%3F.png"


class TestLocalFiles:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        for name in ("photos/a.jpg", "images/positive-edit/1.png"):
            (tmp_path / name).parent.mkdir(parents=True)
            (tmp_path / name).write_bytes(b"picture")
        return tmp_path

    def parse(self, folder: Path, **changes: Any) -> Record | Reject:
        return parse(record(1, **changes), Source("sft.jsonl", folder, CDN, PHOTOS, ASSIGN_SHARD))

    def test_files_beside_a_local_manifest_are_used(self, folder: Path) -> None:
        parsed = self.parse(folder, local_input_image="photos/a.jpg")
        assert isinstance(parsed, Record)
        assert parsed.local_input == str(folder / "photos/a.jpg")
        assert parsed.local_output == str(folder / "images/positive-edit/1.png")

    def test_without_a_url_the_local_name_identifies_the_photo(self, folder: Path) -> None:
        parsed = self.parse(folder, local_input_image="photos/a.jpg", open_image_input_url=...)
        assert isinstance(parsed, Record)
        assert parsed.source_id == source_id("photos/a.jpg")

    def test_the_url_replaces_a_missing_file(self, folder: Path) -> None:
        parsed = self.parse(folder, local_input_image="photos/b.jpg", output_image="images/2.png")
        assert isinstance(parsed, Record)
        assert (parsed.local_input, parsed.local_output) == ("", "")
        assert parsed.input_url

    @pytest.mark.parametrize("url", [..., "https://example.org/large.jpg#xywh=0,0,64,64"])
    def test_a_missing_file_without_a_usable_url_is_rejected(self, folder: Path, url: Any) -> None:
        parsed = self.parse(folder, local_input_image="photos/b.jpg", open_image_input_url=url)
        assert isinstance(parsed, Reject)
        assert "does not exist" in parsed.reason

    @pytest.mark.parametrize("name", ["../a.jpg", "/etc/passwd", "photos/../../a.jpg", "file:///etc/passwd"])
    def test_a_file_outside_the_manifests_folder_is_rejected(self, folder: Path, name: str) -> None:
        parsed = self.parse(folder / "photos", local_input_image=name)
        assert isinstance(parsed, Reject)
        assert "local_input_image" in parsed.reason

    def test_a_remote_manifest_has_no_local_files(self) -> None:
        reason = reason_of(record(1, local_input_image="etc/passwd", open_image_input_url=...))
        assert "open_image_input_url" in reason


@pytest.mark.parametrize(
    "other",
    ["HTTPS://Photos.Example.ORG/a.jpg", "https://photos.example.org:443/a.jpg",
     "https://photos.example.org/a.jpg#xywh=0,0,10,10"],
)  # fmt: skip
def test_spellings_of_a_url_have_the_same_source_id(other: str) -> None:
    assert source_id(other) == source_id("https://photos.example.org/a.jpg")


@pytest.mark.parametrize(
    "other",
    ["http://photos.example.org/a.jpg", "https://photos.example.org/A.jpg",
     "https://photos.example.org:8443/a.jpg", "https://photos.example.org/a.jpg?size=l"],
)  # fmt: skip
def test_different_urls_have_different_source_ids(other: str) -> None:
    assert source_id(other) != source_id("https://photos.example.org/a.jpg")


ADDRESSES = st.from_regex(r"https?://[a-zA-Z0-9.:@-]{1,12}/[!-~]{0,12}", fullmatch=True)


@given(ADDRESSES)
def test_plain_urls_give_the_same_result_as_parsing(url: str) -> None:
    """Most URLs match a pattern instead of being parsed, with the same result."""
    quick = parse(record(1, open_image_input_url=url))
    with pytest.MonkeyPatch.context() as patch:
        for module in (manifest_line, splits):
            patch.setattr(module, "PLAIN_URL", re.compile(r"(?!)"))
        assert parse(record(1, open_image_input_url=url)) == quick


@given(st.text(st.sampled_from("a1._-/\\: é\n"), min_size=1, max_size=12))
def test_plain_names_give_the_same_result_as_checking(name: str) -> None:
    quick = parse(record(1, output_image=name))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifest_line, "_PLAIN_NAME", re.compile(r"(?!)"))
        assert parse(record(1, output_image=name)) == quick


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.binary())
def test_any_bytes_are_a_record_or_a_reject(data: bytes) -> None:
    assert isinstance(parse(data), (Record, Reject))


@given(st.dictionaries(st.sampled_from([*record(1), "local_input_image", "rejected_images", "files"]), JSON))
def test_any_object_is_a_record_or_a_reject(changes: dict[str, Any]) -> None:
    for source in (REMOTE, Source("sft.jsonl", Path("/nowhere"), CDN, PHOTOS, ASSIGN_SHARD)):
        parsed = parse({**record(1), **changes}, source)
        assert isinstance(parsed, (Record, Reject))
        if isinstance(parsed, Reject):
            assert 0 < len(parsed.reason) < 1000


NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=60)


@given(st.lists(NAMES, unique=True, max_size=50))
def test_keys_are_safe_and_unique(names: list[str]) -> None:
    keys = [record_key("sft", name) for name in names]
    assert len(set(keys)) == len(keys)
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{1,80}", key) for key in keys)


def test_names_with_different_folders_or_suffixes_have_different_keys() -> None:
    names = ["a/1.png", "b/1.png", "a/1.jpg", "a/1_retry1.png", "a/retry1.1.png", "a/1"]
    assert len({record_key("sft", name) for name in names}) == len(names)
    assert record_key("sft", "a/1.png") != record_key("preference", "a/1.png")


def ratios() -> st.SearchStrategy[SplitsSettings]:
    def build(train: int, dev: int, shards: int, seed: int) -> SplitsSettings:
        dev = min(dev, 100 - train)
        names = {"train": train, "dev": dev, "test": 100 - train - dev}
        return SplitsSettings(
            seed=seed,
            **{name: SplitSettings(ratio=share / 100, shards=shards) for name, share in names.items()},
        )

    return st.builds(build, st.integers(0, 100), st.integers(0, 100), st.integers(1, 50), st.integers(0, 9))


@given(st.text(max_size=20).filter(str.isprintable), ratios())
def test_a_photo_is_in_a_shard_of_a_split_with_a_positive_ratio(url: str, settings: SplitsSettings) -> None:
    split, shard = shard_assigner(settings)(source_id(url))
    assert settings.by_name()[split].ratio > 0
    assert shard in {f"{split}-{index:05d}" for index in range(settings.by_name()[split].shards)}
    assert shard_assigner(settings)(source_id(url)) == (split, shard)


def test_splits_have_their_ratios() -> None:
    assign = shard_assigner(SPLITS)
    counts = Counter(assign(source_id(f"https://example.org/{number}.jpg"))[0] for number in range(4000))
    assert counts["train"] == pytest.approx(3600, abs=80)
    assert counts["dev"] == pytest.approx(200, abs=50)
    assert counts["test"] == pytest.approx(200, abs=50)


def test_another_seed_gives_another_assignment() -> None:
    ids = [source_id(f"https://example.org/{number}.jpg") for number in range(100)]
    first, second = shard_assigner(SPLITS), shard_assigner(SplitsSettings(seed=1))
    assert [first(source) for source in ids] != [second(source) for source in ids]
