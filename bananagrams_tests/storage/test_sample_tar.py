from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bananagrams_assets.dataset.extract import extract_shard
from bananagrams_assets.storage.local import LocalStore
from bananagrams_assets.storage.sample_tar import (
    Sample,
    SampleCursor,
    SampleError,
    join_by_key,
    read_folder,
    read_samples,
    sample_writer,
    split_name,
)

SAMPLES = [
    Sample("a-1", {"input.jpg": b"\xff\xd8", "text.txt": b"one"}),
    Sample("a_2", {"input.jpg": b"\xff\xd8\xff", "text.txt": b""}),
]


def written(folder: Path, samples: list[Sample]) -> Path:
    store = LocalStore(folder)
    with sample_writer(store, "s.tar") as tar:
        for sample in samples:
            for part, data in sample.parts.items():
                tar.add(sample.key, part, data)
    path = folder / "s.tar"
    assert tar.file.info.bytes == path.stat().st_size
    return path


def read(path: Path) -> list[Sample]:
    with path.open("rb") as file:
        return list(read_samples(file))


def raw_tar(path: Path, *members: tuple[str, bytes | None]) -> Path:
    """Write a tar with arbitrary names; a member of None is a link to /etc/passwd."""
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            header = tarfile.TarInfo(name)
            if data is None:
                header.type, header.linkname = tarfile.SYMTYPE, "/etc/passwd"
            else:
                header.size = len(data)
            tar.addfile(header, io.BytesIO(data or b""))
    return path


def test_written_samples_read_back(tmp_path: Path) -> None:
    assert read(written(tmp_path, SAMPLES)) == SAMPLES


def test_the_bytes_depend_only_on_the_content(tmp_path: Path) -> None:
    first, second = written(tmp_path / "a", SAMPLES), written(tmp_path / "b", SAMPLES)
    assert first.read_bytes() == second.read_bytes()
    with tarfile.open(first) as tar:
        for member in tar:
            assert (member.mtime, member.uid, member.gid, member.uname, member.mode) == (0, 0, 0, "", 0o644)


def test_part_finds_any_format() -> None:
    sample = Sample("a", {"input.webp": b"1", "input_2.jpg": b"2"})
    assert sample.part("input") == b"1"
    assert sample.part("edited") is None


@pytest.mark.parametrize(
    "name",
    ["../a.txt", "/a.txt", "a/b.txt", "a", ".a", "a.", "a..txt", "a b.txt", "ä.txt", "a.t\nt", "a.txt\n"],
)
def test_invalid_names_raise(tmp_path: Path, name: str) -> None:
    with pytest.raises(SampleError):
        split_name(name)
    path = raw_tar(tmp_path / "s.tar", ("good.txt", b"1"), (name, b"2"))
    with pytest.raises(SampleError, match=r"s\.tar"):
        extract_shard(path, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} <= {"good.txt"}
    assert not (tmp_path / "a.txt").exists()


def test_links_raise(tmp_path: Path) -> None:
    with pytest.raises(SampleError, match="not a plain file"):
        extract_shard(raw_tar(tmp_path / "s.tar", ("a.txt", None)), tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_a_repeated_part_raises(tmp_path: Path) -> None:
    with pytest.raises(SampleError, match=r"a\.txt exists twice"):
        read(raw_tar(tmp_path / "s.tar", ("a.txt", b"1"), ("a.txt", b"2")))


@pytest.fixture(scope="module")
def complete_tar(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return written(tmp_path_factory.mktemp("complete"), SAMPLES).read_bytes()


@given(length=st.integers(0, 4096))
def test_a_truncated_tar_raises(complete_tar: bytes, length: int) -> None:
    with pytest.raises(SampleError, match="not a whole tar"):
        list(read_samples(io.BytesIO(complete_tar[:length])))


@given(st.binary(max_size=2000))
def test_other_bytes_raise(data: bytes) -> None:
    with pytest.raises(SampleError):
        list(read_samples(io.BytesIO(data + b"end")))


def test_an_extracted_shard_reads_back(tmp_path: Path) -> None:
    assert extract_shard(written(tmp_path, SAMPLES), tmp_path / "out") == 2
    (tmp_path / "out" / ".hidden").write_text("")
    assert list(read_folder(tmp_path / "out")) == SAMPLES
    assert (tmp_path / "out" / "a-1.text.txt").read_bytes() == b"one"


keys = st.lists(st.text("abc", min_size=1, max_size=2), unique=True).map(sorted)


def tagged(sample_keys: list[str], tag: bytes) -> Iterator[Sample]:
    return (Sample(key, {"tag.txt": tag}) for key in sample_keys)


@given(left=keys, right=keys)
def test_join_by_key_pairs_equal_keys_and_reads_both_inputs_to_the_end(
    left: list[str], right: list[str]
) -> None:
    samples = tagged(right, b"right")
    expected = [(key, key if key in right else None) for key in left]
    joined = list(join_by_key(tagged(left, b"left"), samples))
    assert [(sample.key, match and match.key) for sample, match in joined] == expected
    assert all(sample.parts["tag.txt"] == b"left" for sample, _ in joined)
    assert all(match is None or match.parts["tag.txt"] == b"right" for _, match in joined)
    assert next(samples, None) is None


@given(present=keys, requested=st.lists(st.text("abc", min_size=1, max_size=2)).map(sorted))
def test_a_cursor_finds_ascending_keys(present: list[str], requested: list[str]) -> None:
    cursor = SampleCursor(tagged(present, b""))
    found = [sample and sample.key for sample in map(cursor.find, requested)]
    assert found == [key if key in present else None for key in requested]


def test_join_by_key_raises_for_a_truncated_right_tar(complete_tar: bytes) -> None:
    left = iter([SAMPLES[0]])
    with pytest.raises(SampleError, match="not a whole tar"):
        list(join_by_key(left, read_samples(io.BytesIO(complete_tar[:3584]))))


def test_a_cursor_finds_nothing_after_an_error(complete_tar: bytes) -> None:
    cursor = SampleCursor(read_samples(io.BytesIO(complete_tar[:700])))
    with pytest.raises(SampleError):
        cursor.find("a_2")
    assert cursor.find("a_2") is None
