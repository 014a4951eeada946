"""Samples that a reviewer labelled bad are left out of the next build, with a reason."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bananagrams_assets.config import Profile
from bananagrams_assets.graph import ALIGNED_PAIRS, EDIT_MASKS, IMAGE_PAIRS, MANIFEST, SHARDS
from bananagrams_assets.progress import ignore_progress
from bananagrams_assets.records.sources import SourceError
from bananagrams_assets.stages.build import build_partition
from bananagrams_assets.stages.reviews import bad_samples
from bananagrams_assets.stages.shards import dataset_digest
from bananagrams_assets.stages.staleness import why_stale
from bananagrams_assets.storage import paths
from bananagrams_assets.storage.local import LocalStore
from bananagrams_assets.storage.tables import read_table

from ..photos import local_pairs, one_shard
from .building import build_all

SHARD = "train-00000"

FILE = {"format": "bananagrams-verdicts-1", "reviewer": "Ann"}


def write_labels(path: Path, *samples: tuple[str, str, str, str], reviewer: str = "Ann") -> Path:
    """Write a review file with (key, shard, label, note) of each sample; return its path."""
    rows = [dict(zip(("key", "shard", "verdict", "note"), sample, strict=True)) for sample in samples]
    path.write_text(json.dumps(FILE | {"reviewer": reviewer, "samples": rows}), encoding="utf-8")
    return path


def with_reviews(profile: Profile, *names: object) -> Profile:
    shards = profile.shards.model_copy(update={"reviews": tuple(map(str, names))})
    return profile.model_copy(update={"shards": shards})


def outcomes(store: LocalStore) -> dict[str, tuple[str, str]]:
    """Return (status, reason) of each record of the shard, by key."""
    rows = read_table(store, paths.shard_table(SHARD))
    return {row["key"]: (row["status"], row["reason"]) for row in rows}


@pytest.fixture
def built(tmp_path: Path) -> tuple[LocalStore, Profile]:
    store, profile = LocalStore(tmp_path / "store"), one_shard(local_pairs(tmp_path / "pairs", 3))
    build_all(store, profile, stages=(MANIFEST, IMAGE_PAIRS, ALIGNED_PAIRS, EDIT_MASKS, SHARDS))
    return store, profile


def test_a_sample_labelled_bad_is_left_out_with_reviewer_and_note(
    built: tuple[LocalStore, Profile], tmp_path: Path
) -> None:
    store, profile = built
    keys = sorted(outcomes(store))
    bad = (keys[0], SHARD, "bad", "the flag's shadow is missing")
    file = write_labels(tmp_path / "ann.json", bad, (keys[1], SHARD, "good", ""), (keys[2], SHARD, "", "hm"))
    reviewed = with_reviews(profile, file)
    assert why_stale(store, profile, SHARDS, SHARD) == []
    assert why_stale(store, reviewed, SHARDS, SHARD) == ["shards.reviews changed"]
    assert why_stale(store, reviewed, SHARDS, "dev-00000") == []
    build_partition(store, reviewed, SHARDS, SHARD, ignore_progress)
    assert outcomes(store) == {
        keys[0]: ("dropped", "judged bad by Ann: the flag's shadow is missing"),
        keys[1]: ("written", ""), keys[2]: ("written", ""),
    }  # fmt: skip
    # A note on a good sample changes nothing. A removed label restores the sample.
    write_labels(file, bad, (keys[1], SHARD, "good", "fine"))
    assert why_stale(store, reviewed, SHARDS, SHARD) == []
    write_labels(file, (keys[1], SHARD, "good", "fine"))
    assert why_stale(store, reviewed, SHARDS, SHARD) == ["shards.reviews changed"]


def test_reviews_do_not_change_the_metadata_of_other_samples(built: tuple[LocalStore, Profile]) -> None:
    _, profile = built
    assert dataset_digest(with_reviews(profile, "ann.json")) == dataset_digest(profile)


def test_review_files_are_local_or_in_the_store_and_one_bad_label_suffices(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    good = write_labels(tmp_path / "a.json", ("k", "", "good", ""))
    bad = (("k", "", "bad", ""), ("l", "dev-00000", "bad", ""))
    store.write("b.json", write_labels(tmp_path / "b.json", *bad, reviewer="").read_bytes())
    profile = with_reviews(one_shard("unused.jsonl"), good, "store:b.json")
    assert bad_samples(store, profile.shards.reviews, SHARD) == {"k": "judged bad by b.json"}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (None, "No such file or directory"),
        ("{", "not a review file"),
        ("[]", "not a review file"),
        ('{"format": "other"}', "its format is 'other'"),
        (
            '{"format": "bananagrams-verdicts-1", "reviewer": "A", "samples": [{"key": "k"}]}',
            "sample 1 lacks",
        ),
        (
            json.dumps(FILE | {"samples": [{"key": "k", "shard": "", "verdict": "awful", "note": ""}]}),
            "k: its verdict is 'awful'; good, bad or empty is expected",
        ),
    ],
)
def test_the_error_of_an_invalid_review_file_names_it(tmp_path: Path, text: str | None, problem: str) -> None:
    path = tmp_path / "ann.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SourceError, match=rf"ann\.json.*{problem}"):
        bad_samples(LocalStore(tmp_path), with_reviews(one_shard("unused.jsonl"), path).shards.reviews, SHARD)


def test_the_error_of_a_missing_review_file_names_it(tmp_path: Path) -> None:
    profile = with_reviews(one_shard("unused.jsonl"), "store:reviews/ann.json")
    with pytest.raises(SourceError, match=r"shards.reviews: .*reviews/ann.json: no such file"):
        bad_samples(LocalStore(tmp_path), profile.shards.reviews, SHARD)


def test_a_receipt_of_an_earlier_version_with_reviews_is_current(
    built: tuple[LocalStore, Profile], tmp_path: Path
) -> None:
    store, profile = built
    key = min(outcomes(store))
    reviewed = with_reviews(profile, write_labels(tmp_path / "ann.json", (key, SHARD, "bad", "")))
    build_partition(store, reviewed, SHARDS, SHARD, ignore_progress)
    name = paths.receipt("shards", SHARD)
    store.write(name, store.read(name).replace(b'"shards.reviews"', b'"shards.verdicts"'))
    assert b"shards.verdicts" in store.read(name)
    assert why_stale(store, reviewed, SHARDS, SHARD) == []
