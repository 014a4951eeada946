"""The three kinds of records, and the filters."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bananagrams_assets.config import ConfigError, Profile, SourceSettings, SplitsSettings
from bananagrams_assets.graph import MANIFEST
from bananagrams_assets.records.manifest_line import Source, parse_line
from bananagrams_assets.records.open_images import Photos
from bananagrams_assets.records.record import Record, Reject
from bananagrams_assets.records.splits import shard_assigner, source_id
from bananagrams_assets.stages.manifest import ManifestError
from bananagrams_assets.storage import paths
from bananagrams_assets.storage.local import LocalStore
from bananagrams_assets.storage.tables import read_table

from ..photos import profile_of, record, write_manifest
from .building import call

CDN = "https://cdn.example.org/nb/"
ORIGINAL = "https://farm8.staticflickr.com/2915/14573719235_6cfb811e3c_o.jpg"
PHOTOS = Photos(SourceSettings())
ASSIGN_SHARD = shard_assigner(SplitsSettings())
REMOTE = Source("https://example.org/multi-turn.jsonl", None, CDN, PHOTOS, ASSIGN_SHARD)


def chain(number: int = 101, turns: int = 3, original: str = ORIGINAL, **changes: Any) -> dict[str, Any]:
    """Return a record as in the public multi-turn manifest."""
    files = [
        {"id": f"edit_turn{turn}", "url": f"images/multi-turn/{number}_attemptB_turn{turn}.png"}
        for turn in range(1, turns)
    ]
    files.append({"id": "final_image", "url": f"images/multi-turn/{number}_attemptB_turn{turns}.png"})
    files.append({"id": "original_input_image", "url": original})
    prompts = [f"Change number {turn}" for turn in range(1, turns + 1)]
    return {"files": files, "metadata_edit_turn_prompts": prompts, **changes}


def parse(content: Any, source: Source = REMOTE) -> list[Record | Reject]:
    return parse_line(json.dumps(content).encode(), 7, source)


def records_of(content: Any, source: Source = REMOTE) -> list[Record]:
    parsed = parse(content, source)
    assert all(isinstance(item, Record) for item in parsed), parsed
    return [item for item in parsed if isinstance(item, Record)]


def reason_of(content: Any, source: Source = REMOTE) -> str:
    (reject,) = parse(content, source)
    assert isinstance(reject, Reject)
    assert reject.line == 7
    return reject.reason


def build(folder: Path, profile: Profile) -> list[dict[str, Any]]:
    store = LocalStore(folder / "store")
    call(MANIFEST, store, profile)
    return [row for shard in profile.shard_keys() for row in read_table(store, paths.manifest_table(shard))]


class TestChains:
    def test_the_input_of_a_turn_is_the_image_before_it(self) -> None:
        records = records_of(chain())
        names = [f"images/multi-turn/101_attemptB_turn{turn}.png" for turn in (1, 2, 3)]
        assert [item.kind for item in records] == ["multi-turn"] * 3
        assert [item.turn for item in records] == [1, 2, 3]
        assert [item.output_image for item in records] == names
        assert [item.output_url for item in records] == [CDN + name for name in names]
        assert [item.input_url for item in records] == [ORIGINAL, CDN + names[0], CDN + names[1]]
        assert [item.input_candidates for item in records] == [[item.input_url] for item in records]
        assert [item.text for item in records] == ["Change number 1", "Change number 2", "Change number 3"]
        assert [item.summary for item in records] == [item.text for item in records]
        assert {(item.edit_type, item.category, item.scope) for item in records} == {
            ("unknown", "unknown", "")
        }

    def test_all_turns_have_the_source_id_of_the_original(self) -> None:
        records = records_of(chain(turns=5))
        assert {item.source_id for item in records} == {source_id(ORIGINAL)}
        assert len({(item.split, item.shard) for item in records}) == 1
        assert {item.attribution for item in records} == {f"photograph: {ORIGINAL}"}
        assert len({item.key for item in records}) == 5

    def test_a_chain_of_one_turn_has_only_the_final_image(self) -> None:
        (record_,) = records_of(chain(turns=1))
        assert (record_.turn, record_.input_url) == (1, ORIGINAL)

    def test_turns_are_ordered_by_their_number(self) -> None:
        content = chain(turns=12)
        content["files"] = sorted(content["files"], key=lambda file: str(file["id"]))
        assert records_of(content) == records_of(chain(turns=12))

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"files": None}, "files is null"),
            ({"files": {}}, "files is not a list but a dict"),
            ({"files": ["a.png"]}, "files has an entry that is not an object but a str"),
            ({"files": [{"url": "a.png"}]}, "id of a file is missing"),
            ({"files": [{"id": "edit_turn1"}]}, "url of edit_turn1 is missing"),
            ({"files": [{"id": "edit_turn1", "url": None}]}, "url of edit_turn1 is null"),
            ({"files": [{"id": "thumbnail", "url": "a.png"}]}, "unknown id: 'thumbnail'"),
            ({"metadata_edit_turn_prompts": None}, "metadata_edit_turn_prompts is null"),
            ({"metadata_edit_turn_prompts": "Zoom in"}, "metadata_edit_turn_prompts is not a list but a str"),
            ({"metadata_edit_turn_prompts": ["a"]}, "1 metadata_edit_turn_prompts for 3 turns"),
        ],
    )
    def test_an_invalid_chain_is_one_reject(self, changes: dict[str, Any], words: str) -> None:
        assert words in reason_of(chain(**changes))

    @pytest.mark.parametrize("name", ["original_input_image", "edit_turn1", "final_image"])
    def test_a_missing_or_repeated_image_is_rejected(self, name: str) -> None:
        content = chain()
        kept = [file for file in content["files"] if file["id"] != name]
        lost = [file for file in content["files"] if file["id"] == name]
        assert "files lacks an image: " in reason_of({**content, "files": kept})
        assert reason_of({**content, "files": kept + lost * 2}) == f"files has an image twice: '{name}'"

    def test_a_chain_needs_files_and_prompts(self) -> None:
        content = chain()
        del content["metadata_edit_turn_prompts"]
        assert reason_of(content) == "metadata_edit_turn_prompts is missing"
        assert reason_of({"metadata_edit_turn_prompts": []}) == "files is missing"

    @pytest.mark.parametrize(("prompt", "word"), [(None, "null"), (" ", "empty"), (3, "not a string")])
    def test_only_a_turn_without_a_prompt_is_rejected(self, prompt: Any, word: str) -> None:
        first, second, third = parse(chain(metadata_edit_turn_prompts=["Zoom in", prompt, "Warmer"]))
        assert isinstance(first, Record)
        assert isinstance(third, Record)
        assert isinstance(second, Reject)
        assert second.output_image == "images/multi-turn/101_attemptB_turn2.png"
        assert second.reason.startswith(f"prompt of a turn is {word}")
        assert second.reason.endswith(": turn 2")
        assert third.input_url == CDN + second.output_image

    @pytest.mark.parametrize("name", ["../1.png", "/etc/1.png", "https://example.org/1.png", "a\\b.png"])
    def test_an_edited_image_outside_its_folder_is_rejected(self, name: str) -> None:
        content = chain(turns=1)
        content["files"][0]["url"] = name
        assert reason_of(content).startswith("url of an edited image ")

    @pytest.mark.parametrize("url", ["ftp://example.org/a.jpg", "photos/a.jpg", "/etc/passwd", "file:///a"])
    def test_a_remote_chain_starts_with_an_http_url(self, url: str) -> None:
        assert reason_of(chain(original=url)).startswith("original_input_image must be an http or https URL")

    def test_a_local_chain_uses_its_files(self, tmp_path: Path) -> None:
        names = ["photos/1.jpg", "images/multi-turn/101_attemptB_turn1.png"]
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True)
            (tmp_path / name).write_bytes(b"picture")
        source = Source("multi-turn.jsonl", tmp_path, CDN, PHOTOS, ASSIGN_SHARD)
        first, second = records_of(chain(turns=2, original=names[0]), source)
        assert (first.local_input, first.local_output) == (f"{tmp_path}/{names[0]}", f"{tmp_path}/{names[1]}")
        assert first.input_candidates == [f"local:{tmp_path}/{names[0]}"]
        assert second.input_candidates == [f"local:{tmp_path}/{names[1]}"]
        assert (second.local_output, second.source_id) == ("", source_id(names[0]))
        assert "does not exist" in reason_of(chain(original="photos/2.jpg"), source)
        assert "must not have" in reason_of(chain(original="../1.jpg"), source)
        mapped = chain(turns=1, local_input_image=names[0])
        assert records_of(mapped, source)[0].input_candidates == [f"local:{tmp_path}/{names[0]}", ORIGINAL]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["id", "url"]), inner),
    max_leaves=12,
)
FILES = st.lists(
    st.fixed_dictionaries(
        {
            "id": st.sampled_from(["original_input_image", "final_image", "edit_turn1", "edit_turn2"]) | JSON,
            "url": st.sampled_from([ORIGINAL, "a/1.png", "a/2.png", "../3.png"]) | JSON,
        }
    ),
    max_size=5,
)


@given(FILES | JSON, st.lists(st.text() | JSON, max_size=4) | JSON)
def test_any_chain_gives_records_and_rejects(files: Any, prompts: Any) -> None:
    for source in (REMOTE, Source("multi-turn.jsonl", Path("/nowhere"), CDN, PHOTOS, ASSIGN_SHARD)):
        parsed = parse({"files": files, "metadata_edit_turn_prompts": prompts}, source)
        assert parsed
        turns = [item.turn for item in parsed if isinstance(item, Record)]
        assert turns == sorted(set(turns))
        assert all(0 < len(item.reason) < 1000 for item in parsed if isinstance(item, Reject))


class TestManifests:
    def test_the_fields_of_a_record_determine_its_kind(self, tmp_path: Path) -> None:
        lines = [record(1), record(2, rejected_images=["images/negative/2.png"]), chain()]
        rows = build(tmp_path, profile_of(write_manifest(tmp_path, lines, "all.jsonl")))
        assert Counter(row["kind"] for row in rows) == {"sft": 1, "preference": 1, "multi-turn": 3}

    def test_image_names_may_be_any_text(self, tmp_path: Path) -> None:
        names = ["1.png", "1_retry1.png", "kewsee_retry1.png", "kewsee_retry1.1.png", "retry1.png", "ä 1.png"]
        lines = [record(output_image=f"images/positive-edit/{name}") for name in names]
        rows = build(tmp_path, profile_of(write_manifest(tmp_path, lines)))
        assert len({row["key"] for row in rows}) == len(names)
        assert all(re.fullmatch(r"[A-Za-z0-9_-]+", row["key"]) for row in rows)

    def test_each_turn_of_a_repeated_chain_is_a_duplicate(self, tmp_path: Path) -> None:
        path = write_manifest(tmp_path, [chain(), record(1), chain()])
        profile = profile_of(path)
        assert len(build(tmp_path, profile)) == 4
        rejects = read_table(LocalStore(tmp_path / "store"), paths.MANIFEST_REJECTS)
        assert [row["reason"] for row in rejects] == ["exact duplicate: line 3 repeats line 1"] * 3

    def test_different_chains_with_one_image_lose_it(self, tmp_path: Path) -> None:
        other = chain(metadata_edit_turn_prompts=["Change number 1", "Another", "Change number 3"])
        rows = build(tmp_path, profile_of(write_manifest(tmp_path, [chain(), other])))
        assert sorted(row["turn"] for row in rows) == [1, 3]
        rejects = read_table(LocalStore(tmp_path / "store"), paths.MANIFEST_REJECTS)
        different = [row for row in rejects if row["reason"].startswith("output_image of different records")]
        assert [row["line"] for row in different] == [1, 2]
        assert all(row["reason"].endswith("_turn2.png on line 1, line 2") for row in different)
        assert len(rejects) == 4

    def test_a_reason_lists_at_most_five_lines(self, tmp_path: Path) -> None:
        lines = [record(1, text=f"Text {number}") for number in range(8)]
        build(tmp_path, profile_of(write_manifest(tmp_path, [*lines, record(2)])))
        rejects = read_table(LocalStore(tmp_path / "store"), paths.MANIFEST_REJECTS)
        assert len(rejects) == 8
        assert rejects[0]["reason"].endswith("on line 1, line 2, line 3, line 4, line 5 and 3 more")

    def test_edits_of_all_kinds_of_a_photo_are_in_one_shard(self, tmp_path: Path) -> None:
        paths = [
            write_manifest(tmp_path, lines, f"{name}.jsonl")
            for name, lines in {
                "sft": [record(n, open_image_input_url=f"https://p.example.org/{n}.jpg") for n in range(9)],
                "preference": [
                    record(
                        n + 100, open_image_input_url=f"HTTPS://P.example.org:443/{n}.jpg", rejected_images=[]
                    )
                    for n in range(9)
                ],
                "multi-turn": [chain(n, original=f"https://p.example.org/{n}.jpg#a") for n in range(9)],
            }.items()
        ]
        shards: dict[str, set[str]] = {}
        kinds: dict[str, set[str]] = {}
        for row in build(tmp_path, profile_of(*paths)):
            shards.setdefault(row["source_id"], set()).add(row["shard"])
            kinds.setdefault(row["source_id"], set()).add(row["kind"])
        assert len(shards) == 9
        assert all(len(values) == 1 for values in shards.values())
        assert all(values == {"sft", "preference", "multi-turn"} for values in kinds.values())


class TestFilters:
    lines = (
        record(1, edit_type="Zoom in"),
        record(2, edit_type="Remove an existing object"),
        record(3, edit_type="Add film grain or vintage filter", rejected_images=[]),
        record(4, edit_type="Something new"),
        chain(),
    )

    @pytest.mark.parametrize(
        ("name", "values", "count"),
        [
            ("kinds", ["sft"], 3),
            ("kinds", ["preference", "multi-turn"], 4),
            ("categories", ["Object"], 1),
            ("categories", ["Geometric", "unknown"], 5),
            ("scopes", ["local"], 1),
            ("scopes", ["global", "geometric"], 2),
            ("scopes", ["unknown"], 4),
            ("edit_types", ["zoom-in", "film-grain"], 2),
        ],
    )
    def test_a_filter_selects_records(self, tmp_path: Path, name: str, values: list[str], count: int) -> None:
        rows = build(tmp_path, profile_of(write_manifest(tmp_path, self.lines), source={name: values}))
        assert len(rows) == count

    def test_all_filters_apply(self, tmp_path: Path) -> None:
        path = write_manifest(tmp_path, self.lines)
        both = {"kinds": ["sft"], "scopes": ["local", "global"]}
        assert len(build(tmp_path, profile_of(path, source=both))) == 1
        none = {"kinds": ["multi-turn"], "categories": ["Text"]}
        with pytest.raises(ManifestError, match=r"source\.kinds \(multi-turn\) and source\.categ.* \(Text\)"):
            build(tmp_path, profile_of(path, source=none))

    @pytest.mark.parametrize(
        ("name", "values", "words"),
        [
            ("kinds", ["stf"], "'sft', 'preference' or 'multi-turn'"),
            ("categories", ["Objects"], "'Object', 'Photometric', 'Scene', 'Style', 'Text', 'Human'"),
            ("scopes", ["everything"], "'local', 'global', 'geometric' or 'unknown'"),
            ("photos_from", ["flickr"], "'local', 'mirror' or 'original'"),
            ("photos_from", ["mirror", "mirror"], "names a place twice"),
            ("photos_from", [], "at least 1"),
        ],
    )
    def test_invalid_values_raise_with_the_allowed_ones(
        self, name: str, values: list[str], words: str
    ) -> None:
        with pytest.raises(ConfigError, match=rf"source\.{name}.*{words}"):
            profile_of(source={name: values})

    def test_a_sample_contains_all_kinds(self, tmp_path: Path) -> None:
        lines = [record(n) for n in range(300)]
        lines += [record(n + 1000, rejected_images=[]) for n in range(300)]
        path = write_manifest(tmp_path, lines)
        rows = build(tmp_path, profile_of(path, source={"max_samples": 200}))
        counts = Counter(row["kind"] for row in rows)
        assert counts.total() == 200
        # A hypergeometric draw: standard deviation 5.8.
        assert 75 <= counts["sft"] <= 125
