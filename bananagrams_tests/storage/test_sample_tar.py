from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bananagrams_assets.dataset.extract import extract_shard
from bananagrams_assets.storage.local import LocalStore
from bananagrams_assets.storage.sample_tar import (
    Sample,
    SampleError,
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
    """A tar with any names; a member of None is a link to /etc/passwd."""
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            header = tarfile.TarInfo(name)
            if data is None:
                header.type, header.linkname = tarfile.SYMTYPE, "/etc/passwd"
            else:
                header.size = len(data)
            tar.addfile(header, io.BytesIO(data or b""))
    return path


def test_what_is_written_reads_back(tmp_path: Path) -> None:
    assert read(written(tmp_path, SAMPLES)) == SAMPLES


def test_the_bytes_depend_on_the_content_alone(tmp_path: Path) -> None:
    first, second = written(tmp_path / "a", SAMPLES), written(tmp_path / "b", SAMPLES)
    assert first.read_bytes() == second.read_bytes()
    with tarfile.open(first) as tar:
        for member in tar:
            assert (member.mtime, member.uid, member.gid, member.uname, member.mode) == (0, 0, 0, "", 0o644)


def test_parts_are_found_whatever_their_format() -> None:
    sample = Sample("a", {"input.webp": b"1", "input_2.jpg": b"2"})
    assert sample.part("input") == b"1"
    assert sample.part("edited") is None


@pytest.mark.parametrize(
    "name",
    ["../a.txt", "/a.txt", "a/b.txt", "a", ".a", "a.", "a..txt", "a b.txt", "ä.txt", "a.t\nt", "a.txt\n"],
)
def test_other_names_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(SampleError):
        split_name(name)
    path = raw_tar(tmp_path / "s.tar", ("good.txt", b"1"), (name, b"2"))
    with pytest.raises(SampleError, match=r"s\.tar"):
        extract_shard(path, tmp_path / "out")
    assert {found.name for found in (tmp_path / "out").iterdir()} <= {"good.txt"}
    assert not (tmp_path / "a.txt").exists()


def test_links_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SampleError, match="not a plain file"):
        extract_shard(raw_tar(tmp_path / "s.tar", ("a.txt", None)), tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_a_part_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SampleError, match=r"a\.txt is there twice"):
        read(raw_tar(tmp_path / "s.tar", ("a.txt", b"1"), ("a.txt", b"2")))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return written(tmp_path_factory.mktemp("whole"), SAMPLES).read_bytes()


@given(length=st.integers(0, 4096))
def test_a_cut_tar_is_an_error(whole: bytes, length: int) -> None:
    with pytest.raises(SampleError, match="not a whole tar"):
        list(read_samples(io.BytesIO(whole[:length])))


@given(st.binary(max_size=2000))
def test_any_other_bytes_are_an_error(data: bytes) -> None:
    with pytest.raises(SampleError):
        list(read_samples(io.BytesIO(data + b"end")))


def test_a_shard_becomes_plain_files_and_reads_back(tmp_path: Path) -> None:
    assert extract_shard(written(tmp_path, SAMPLES), tmp_path / "out") == 2
    (tmp_path / "out" / ".hidden").write_text("")
    assert list(read_folder(tmp_path / "out")) == SAMPLES
    assert (tmp_path / "out" / "a-1.text.txt").read_bytes() == b"one"
