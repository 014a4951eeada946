from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bananagrams_assets.storage import temporary_shard_files
from bananagrams_assets.storage.store import StoreError
from bananagrams_assets.storage.temporary_shard_files import ShardFiles


@given(
    st.lists(st.tuples(st.sampled_from(["train-00000", "train-00001", "dev-00000"]), st.binary(max_size=40))),
    st.integers(0, 100),
)
def test_appended_data_reads_back_by_shard(chunks: list[tuple[str, bytes]], buffer_bytes: int) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(temporary_shard_files, "_BUFFER_BYTES", buffer_bytes)
        shard_files = ShardFiles(Path(folder))
        entries = [(shard, shard_files.append(shard, data), data) for shard, data in chunks]
        for shard in ("train-00000", "train-00001", "dev-00000"):
            with shard_files.reader(shard) as read:
                for _, offset, data in (entry for entry in reversed(entries) if entry[0] == shard):
                    assert read(offset, len(data)) == data


def test_a_missing_folder_raises_store_error(tmp_path: Path) -> None:
    shard_files = ShardFiles(tmp_path / "gone")
    shard_files.append("train-00000", b"record")
    with (
        pytest.raises(StoreError, match=r"gone.train-00000: No such file.*TMPDIR"),
        shard_files.reader("train-00000"),
    ):
        pass
