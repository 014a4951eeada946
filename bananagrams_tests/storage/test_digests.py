"""Plain and members digests."""

from __future__ import annotations

import hashlib
import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bananagrams_assets.storage.digests import MEMBERS, MembersDigest, file_digest
from bananagrams_assets.storage.sample_tar import end_of_tar, tar_member

CONTENTS = st.lists(st.binary(max_size=1500), max_size=4)


def tar_of(contents: list[bytes]) -> bytes:
    blocks = (tar_member(f"{number}", "bin", data) for number, data in enumerate(contents))
    tar = b"".join(bytes(block) for member in blocks for block in member)
    return tar + end_of_tar(len(tar))


def members(data: bytes) -> str:
    return file_digest(io.BytesIO(data), MEMBERS)


@given(CONTENTS, st.integers(1, 700))
def test_adding_members_and_hashing_bytes_give_the_same_digest(contents: list[bytes], step: int) -> None:
    tar, size = tar_of(contents), 0
    made, read = MembersDigest(), MembersDigest()
    for number, data in enumerate(contents):
        header, _, padding = tar_member(f"{number}", "bin", data)
        made.add(header, hashlib.sha256(data).hexdigest(), padding)
        size += len(header) + len(data) + len(padding)
    made.update(tar[size:])
    for start in range(0, len(tar), step):
        read.update(tar[start : start + step])
    assert made.hexdigest() == read.hexdigest() == members(tar)


@given(CONTENTS, st.integers(0, 2**32), st.integers(1, 255))
def test_changing_any_byte_changes_the_digest(contents: list[bytes], position: int, flip: int) -> None:
    tar = tar_of(contents)
    other = bytearray(tar)
    other[position % len(tar)] ^= flip
    assert members(bytes(other)) != members(tar)


@given(CONTENTS, st.integers(0, 2**32))
def test_truncating_a_tar_changes_the_digest(contents: list[bytes], cut: int) -> None:
    tar = tar_of(contents)
    assert members(tar[: cut % len(tar)]) != members(tar)


@given(st.binary(max_size=3000), st.binary(max_size=3000))
def test_any_bytes_have_a_digest(one: bytes, other: bytes) -> None:
    assert (members(one) == members(other)) == (one == other)
    assert members(one).startswith(MEMBERS)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tar_formats_of_other_tools_have_a_digest(form: int) -> None:
    def tar(content: bytes) -> bytes:
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w", format=form) as made:
            for name in ("a" * 99, "ü" * 40):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                made.addfile(info, io.BytesIO(content))
        return file.getvalue()

    assert members(tar(b"x" * 999)) == members(tar(b"x" * 999)) != members(tar(b"x" * 998 + b"y"))


def test_a_copy_is_independent() -> None:
    digest = MembersDigest()
    header, _, padding = tar_member("a", "bin", b"one")
    digest.add(header, hashlib.sha256(b"one").hexdigest(), padding)
    before, copied = digest.hexdigest(), digest.copy()
    copied.update(bytes(1024))
    assert digest.hexdigest() == before != copied.hexdigest()


def test_a_plain_digest_is_sha256() -> None:
    assert file_digest(io.BytesIO(b"abc"), "") == hashlib.sha256(b"abc").hexdigest()
    assert file_digest(io.BytesIO(b"abc"), 64 * "0") == hashlib.sha256(b"abc").hexdigest()
