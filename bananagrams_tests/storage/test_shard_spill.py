from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bananagrams_assets.storage import shard_spill
from bananagrams_assets.storage.shard_spill import Buckets
from bananagrams_assets.storage.store import StoreError


@given(
    st.lists(st.tuples(st.sampled_from(["train-00000", "train-00001", "dev-00000"]), st.binary(max_size=40))),
    st.integers(0, 100),
)
def test_what_was_added_is_read_back_by_shard(chunks: list[tuple[str, bytes]], waiting: int) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(shard_spill, "_WAITING", waiting)
        written = Buckets(Path(folder))
        places = [(shard, written.add(shard, data), data) for shard, data in chunks]
        for shard in ("train-00000", "train-00001", "dev-00000"):
            with written.reading(shard) as read:
                for _, place, data in (entry for entry in reversed(places) if entry[0] == shard):
                    assert read(place, len(data)) == data


def test_a_folder_that_is_gone_is_a_fault_of_this_machine(tmp_path: Path) -> None:
    written = Buckets(tmp_path / "gone")
    written.add("train-00000", b"record")
    with (
        pytest.raises(StoreError, match=r"gone.train-00000: No such file.*TMPDIR"),
        written.reading("train-00000"),
    ):
        pass
