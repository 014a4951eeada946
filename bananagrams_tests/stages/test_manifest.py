from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from bananagrams_assets.config import ConfigError, Profile
from bananagrams_assets.graph import MANIFEST
from bananagrams_assets.records.record import MANIFEST_COLUMNS
from bananagrams_assets.records.sources import SourceError
from bananagrams_assets.stages.manifest import ManifestError
from bananagrams_assets.stages.stage import StageResult
from bananagrams_assets.storage import paths
from bananagrams_assets.storage.local import LocalStore
from bananagrams_assets.storage.tables import read_table

from ..photos import profile_of, record, write_manifest
from ..servers import Server, body, cut_first, failing_first, status
from .building import call

RECORDS = [
    record(number, open_image_input_url=f"https://p.example.org/{number // 3}.jpg") for number in range(90)
]


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


def build(store: LocalStore, profile: Profile) -> StageResult:
    return call(MANIFEST, store, profile)


def rows(store: LocalStore, profile: Profile) -> list[dict[str, Any]]:
    return [row for shard in profile.shard_keys() for row in read_table(store, paths.manifest_table(shard))]


def rejects(store: LocalStore) -> list[dict[str, Any]]:
    return read_table(store, paths.MANIFEST_REJECTS)


def test_every_record_is_in_its_shard(store: LocalStore, tmp_path: Path) -> None:
    profile = profile_of(write_manifest(tmp_path, RECORDS))
    results = build(store, profile)
    assert set(results.parts) == set(profile.shard_keys())
    table_rows = rows(store, profile)
    assert len(table_rows) == 90
    assert list(table_rows[0]) == list(MANIFEST_COLUMNS)
    for shard in profile.shard_keys():
        table = read_table(store, paths.manifest_table(shard))
        assert [row["key"] for row in table] == sorted(row["key"] for row in table)
        assert {(row["shard"], row["split"]) for row in table} <= {(shard, paths.split_of(shard))}
        assert results.parts[shard].stats["records"] == len(table)
        assert set(results.parts[shard].files) == {paths.manifest_table(shard)}
    assert results.stats["records"] == 90
    assert results.stats["photographs"] == 30


def test_all_edits_of_a_photo_are_in_one_shard(store: LocalStore, tmp_path: Path) -> None:
    profile = profile_of(write_manifest(tmp_path, RECORDS))
    build(store, profile)
    shards: dict[str, set[str]] = {}
    for row in rows(store, profile):
        shards.setdefault(row["source_id"], set()).add(row["shard"])
    assert len(shards) == 30
    assert all(len(names) == 1 for names in shards.values())


def test_adding_a_record_changes_only_its_shard(store: LocalStore, tmp_path: Path) -> None:
    profile = profile_of(tmp_path / "sft.jsonl")
    write_manifest(tmp_path, RECORDS)
    before = build(store, profile)
    shards = {row["key"]: row["shard"] for row in rows(store, profile)}
    write_manifest(tmp_path, [record(1000), *RECORDS])
    after = build(store, profile)
    new_shards = {row["key"]: row["shard"] for row in rows(store, profile)}
    (new,) = new_shards.keys() - shards.keys()
    assert new_shards == {**shards, new: new_shards[new]}
    changed = {
        shard for shard in profile.shard_keys() if before.parts[shard].content != after.parts[shard].content
    }
    assert changed == {new_shards[new]}
    assert before.content != after.content


def test_the_order_of_lines_does_not_matter(tmp_path: Path) -> None:
    profile = profile_of(tmp_path / "sft.jsonl", source={"max_samples": 20})
    contents = []
    for seed in range(2):
        store = LocalStore(tmp_path / f"store-{seed}")
        write_manifest(tmp_path, random.Random(seed).sample(RECORDS, len(RECORDS)))
        results = build(store, profile)
        contents.append({shard: results.parts[shard].content for shard in profile.shard_keys()})
        assert results.stats["records"] == 20
        assert results.stats["left_out"] == 70
    assert contents[0] == contents[1]


def test_the_same_manifest_gives_the_same_bytes(tmp_path: Path) -> None:
    profile = profile_of(write_manifest(tmp_path, RECORDS))
    first = build(LocalStore(tmp_path / "a"), profile)
    second = build(LocalStore(tmp_path / "b"), profile)
    assert first == second


def test_a_small_sample_is_a_subset_of_a_larger_one(tmp_path: Path) -> None:
    samples = []
    for count in (10, 40, 500):
        store = LocalStore(tmp_path / str(count))
        profile = profile_of(write_manifest(tmp_path, RECORDS), source={"max_samples": count})
        build(store, profile)
        samples.append({row["key"] for row in rows(store, profile)})
    assert [len(keys) for keys in samples] == [10, 40, 90]
    assert samples[0] < samples[1] < samples[2]


def test_edit_types_are_filtered(store: LocalStore, tmp_path: Path) -> None:
    records = [record(1), record(2, edit_type="ZOOM IN"), record(3, edit_type="Something new")]
    profile = profile_of(write_manifest(tmp_path, records), source={"edit_types": ["zoom-in"]})
    results = build(store, profile)
    assert [row["edit_type"] for row in rows(store, profile)] == ["Zoom in"]
    assert results.stats["left_out"] == 2
    assert rejects(store) == []


def test_an_unknown_edit_type_is_kept(store: LocalStore, tmp_path: Path) -> None:
    profile = profile_of(write_manifest(tmp_path, [record(1, edit_type="Something new")]))
    build(store, profile)
    (row,) = rows(store, profile)
    assert (row["edit_type"], row["category"], row["scope"]) == ("Something new", "unknown", "")


def test_a_filter_with_an_unknown_type_or_without_matches_raises(store: LocalStore, tmp_path: Path) -> None:
    path = write_manifest(tmp_path, RECORDS)
    with pytest.raises(ConfigError, match=r"source\.edit_types"):
        build(store, profile_of(path, source={"edit_types": ["no such edit"]}))
    with pytest.raises(ManifestError, match=r"source\.edit_types \(zoom-in\)"):
        build(store, profile_of(path, source={"edit_types": ["zoom-in"]}))


def test_invalid_lines_are_rejects_with_their_number(store: LocalStore, tmp_path: Path) -> None:
    lines = [
        json.dumps(record(1)),
        "{broken",
        "",
        json.dumps(record(2, text="")),
        json.dumps(record(3)) + "\r",
        "[]",
        json.dumps(record(4, output_image="../4.png")),
    ]
    path = write_manifest(tmp_path, lines)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    profile = profile_of(path)
    results = build(store, profile)
    assert sorted(row["line"] for row in rows(store, profile)) == [1, 5]
    assert [(row["line"], row["reason"].split(":")[0]) for row in rejects(store)] == [
        (2, "broken JSON"),
        (4, "text is empty"),
        (6, "not a JSON object but a list"),
        (7, "output_image must not have empty, `.` or `..` parts"),
    ]
    assert results.stats["rejected"] == 4
    assert results.stats["reasons"]["broken JSON"] == 1


def test_a_line_that_is_too_long_is_a_reject(
    store: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bananagrams_assets.stages.manifest.LONGEST_LINE", 1000)
    lines = [record(1), record(2, text="x" * 5000), record(3)]
    profile = profile_of(write_manifest(tmp_path, lines))
    build(store, profile)
    assert sorted(row["line"] for row in rows(store, profile)) == [1, 3]
    assert [(row["line"], row["reason"][:13]) for row in rejects(store)] == [(2, "line too long")]


def test_of_equal_records_the_first_is_kept(store: LocalStore, tmp_path: Path) -> None:
    profile = profile_of(write_manifest(tmp_path, [record(1), record(2), record(1), record(1)]))
    build(store, profile)
    assert sorted(row["line"] for row in rows(store, profile)) == [1, 2]
    assert [row["reason"] for row in rejects(store)] == [
        "exact duplicate: line 3 repeats line 1",
        "exact duplicate: line 4 repeats line 1",
    ]


def test_different_records_with_one_output_are_rejected(store: LocalStore, tmp_path: Path) -> None:
    records = [record(1), record(2), record(1, text="Another instruction.")]
    profile = profile_of(write_manifest(tmp_path, records))
    build(store, profile)
    assert [row["line"] for row in rows(store, profile)] == [2]
    assert [row["line"] for row in rejects(store)] == [1, 3]
    for row in rejects(store):
        assert row["reason"].endswith("images/positive-edit/1.png on line 1, line 3")


def test_several_manifests_form_one_set(store: LocalStore, tmp_path: Path) -> None:
    first = write_manifest(tmp_path, [record(1), record(2)], "a.jsonl")
    second = write_manifest(tmp_path, [record(2), record(3)], "b.jsonl")
    profile = profile_of(first, second)
    build(store, profile)
    assert Counter(row["manifest"] for row in rows(store, profile)) == {str(first): 2, str(second): 1}
    (row,) = rejects(store)
    assert row["reason"] == f"exact duplicate: line 1 of {second} repeats line 2 of {first}"


@pytest.mark.parametrize("text", ["", "\n\n\r\n", "\ufeff"])
def test_an_empty_manifest_raises(store: LocalStore, tmp_path: Path, text: str) -> None:
    path = tmp_path / "sft.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ManifestError, match=r"sft\.jsonl: it is empty"):
        build(store, profile_of(path))
    assert store.list("") == []


def test_a_manifest_without_a_usable_record_raises(store: LocalStore, tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"no usable record in 2 lines.*line 1: broken JSON") as caught:
        build(store, profile_of(write_manifest(tmp_path, ["<html>", "</html>"])))
    assert "\n" not in str(caught.value)


def test_one_unusable_manifest_of_several_raises(store: LocalStore, tmp_path: Path) -> None:
    good = write_manifest(tmp_path / "a", [record(1)])
    with pytest.raises(ManifestError, match=r"b/sft\.jsonl: no usable record"):
        build(store, profile_of(good, write_manifest(tmp_path / "b", ["{}"])))


def test_a_missing_manifest_raises(store: LocalStore, tmp_path: Path) -> None:
    for path in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(SourceError, match=f"{path}: cannot be read"):
            build(store, profile_of(path))


def test_a_changed_local_image_changes_its_shard(store: LocalStore, tmp_path: Path) -> None:
    image = tmp_path / "photos/1.jpg"
    image.parent.mkdir()
    image.write_bytes(b"one")
    records = [record(1, local_input_image="photos/1.jpg"), *RECORDS[10:]]
    profile = profile_of(write_manifest(tmp_path, records))
    before = build(store, profile)
    image.write_bytes(b"two")
    after = build(store, profile)
    assert (
        sum(before.parts[shard].content != after.parts[shard].content for shard in profile.shard_keys()) == 1
    )


def test_records_have_the_attribution_of_the_list(store: LocalStore, tmp_path: Path) -> None:
    (tmp_path / "ATTRIBUTION.csv").write_text(
        "photo,author,title,license,source,url\n1,Ann,A dune,CC BY 2.0,set,https://photos.example.org/1_o.jpg\n",
        encoding="utf-8",
    )
    records = [record(1, open_image_input_url="https://photos.example.org/1_o.jpg#xywh=0,0,9,9"), record(2)]
    profile = profile_of(write_manifest(tmp_path, records))
    build(store, profile)
    assert sorted(row["attribution"] for row in rows(store, profile)) == [
        "A dune by Ann · CC BY 2.0 · https://photos.example.org/1_o.jpg",
        "photograph: https://photos.example.org/2_o.jpg",
    ]


def test_attributions_do_not_make_records_different(store: LocalStore, tmp_path: Path) -> None:
    first = write_manifest(tmp_path / "a", [record(1)])
    second = write_manifest(tmp_path / "b", [record(1)])
    (tmp_path / "b" / "ATTRIBUTION.csv").write_text(
        "title,url\nA dune,https://photos.example.org/1_o.jpg\n", encoding="utf-8"
    )
    profile = profile_of(first, second)
    build(store, profile)
    assert len(rows(store, profile)) == 1
    assert rejects(store)[0]["reason"].startswith("exact duplicate")


class TestRemote:
    text = "".join(f"{json.dumps(line)}\n" for line in RECORDS[:20]).encode()

    def test_a_remote_manifest_is_read(self, store: LocalStore, server: Server) -> None:
        server.answers["/sft.jsonl"] = body(self.text)
        profile = profile_of(f"{server.url}/sft.jsonl")
        build(store, profile)
        assert len(rows(store, profile)) == 20
        assert {row["manifest"] for row in rows(store, profile)} == {f"{server.url}/sft.jsonl"}

    @pytest.mark.parametrize("answer", [failing_first(1, 503, text), cut_first(1, text)])
    def test_a_failed_download_is_retried(self, store: LocalStore, server: Server, answer: Any) -> None:
        server.answers["/sft.jsonl"] = answer
        profile = profile_of(f"{server.url}/sft.jsonl")
        build(store, profile)
        assert len(rows(store, profile)) == 20

    @pytest.mark.parametrize(
        ("answer", "words"),
        [(status(404), "HTTP 404"), (status(500), "HTTP 500"), (cut_first(9, text), "cut")],
    )
    def test_an_unreadable_url_raises_with_the_url(
        self, store: LocalStore, server: Server, answer: Any, words: str
    ) -> None:
        server.answers["/sft.jsonl"] = answer
        with pytest.raises(SourceError, match=f"{server.url}/sft.jsonl: .*{words}"):
            build(store, profile_of(f"{server.url}/sft.jsonl"))


def test_the_embedded_sample_is_a_manifest(
    store: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    profile = profile_of(source={"sample": {"pairs": 3, "side_px": 128}})
    build(store, profile)
    table_rows = rows(store, profile)
    assert len(table_rows) == 3
    assert all(
        Path(row["local_input"]).is_file() and Path(row["local_output"]).is_file() for row in table_rows
    )
