"""Photos of Open Images: the list, its index, and the locations of each photo."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bananagrams_assets.config import AlignSettings, FetchSettings, Profile, SourceSettings
from bananagrams_assets.graph import MANIFEST
from bananagrams_assets.records.open_images import Photo, Photos, open_photos
from bananagrams_assets.records.sources import SourceError
from bananagrams_assets.records.splits import source_id
from bananagrams_assets.storage import paths
from bananagrams_assets.storage.local import LocalStore
from bananagrams_assets.storage.tables import read_table
from bananagrams_assets.vision.align import align

from ..photos import edited, make_photo, profile_of, quiet, record, write_manifest
from ..servers import Server, conditional
from ..stages.building import call
from ..stages.test_manifest_kinds import chain
from .test_sources import aged

COLUMNS = ("ImageID", "Subset", "OriginalURL", "OriginalLandingURL", "License", "AuthorProfileURL", "Author",
           "Title", "OriginalSize", "OriginalMD5", "Thumbnail300KURL", "Rotation")  # fmt: skip
MIRROR = "https://open-images-dataset.s3.amazonaws.com/train/"
BY = "https://creativecommons.org/licenses/by/2.0/"
SETTINGS = FetchSettings(attempts=2, timeout_s=2.0, backoff_s=0.01)


def flickr(number: int) -> str:
    return f"https://c1.staticflickr.com/8/7404/{number}_cb1bf5c5e1_o.jpg"


def landing(number: int) -> str:
    return f"https://www.flickr.com/photos/ann/{number}"


def row(number: int, **changes: str) -> dict[str, str]:
    return {
        **dict.fromkeys(COLUMNS, "x"),
        "ImageID": f"{number:016x}",
        "OriginalURL": flickr(number),
        "OriginalLandingURL": landing(number),
        "License": BY,
        "Author": "Ann",
        "Title": f"A dune, {number}",
        "Rotation": "0.0",
        **changes,
    }


def write_list(
    path: Path, rows: Sequence[dict[str, str]], columns: Sequence[str] = COLUMNS, start: str = ""
) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write(start)
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return path


def source(**changes: Any) -> SourceSettings:
    return profile_of(source=changes).source


def lookup(path: Path, url: str, local_name: str = "") -> Photo | None:
    with open_photos(source(open_images={"csv": str(path)}), SETTINGS, quiet) as photos:
        return photos.lookup(url, local_name)


def build(folder: Path, profile: Profile) -> list[dict[str, Any]]:
    store = LocalStore(folder / "store")
    call(MANIFEST, store, profile)
    return [row for shard in profile.shard_keys() for row in read_table(store, paths.manifest_table(shard))]


def test_lookup_by_url(tmp_path: Path) -> None:
    path = write_list(tmp_path / "list.csv", [row(1), row(2, Rotation="90.0"), row(3)])
    assert lookup(path, flickr(2)) == Photo(f"{2:016x}", 90, f"A dune, 2 by Ann · {BY} · {landing(2)}")
    assert lookup(path, flickr(4)) is None


@pytest.mark.parametrize(
    "url",
    [flickr(1).replace("https", "http"), flickr(1).replace("c1.static", "C1.Static"),
     f"{flickr(1)}#xywh=0,0,9,9", flickr(1).replace(".com/", ".com:443/")],
)  # fmt: skip
def test_lookup_ignores_the_spelling_of_a_url(tmp_path: Path, url: str) -> None:
    photo = lookup(write_list(tmp_path / "list.csv", [row(1)]), url)
    assert photo is not None
    assert photo.image_id == f"{1:016x}"


@pytest.mark.parametrize(
    "prefix", [MIRROR, MIRROR.replace("https", "http"), "https://s3.amazonaws.com/open-images-dataset/train/"]
)
def test_lookup_by_the_mirrors_url(tmp_path: Path, prefix: str) -> None:
    path = write_list(tmp_path / "list.csv", [row(1, Rotation="270.0")])
    photo = lookup(path, f"{prefix}{1:016x}.jpg")
    assert photo is not None
    assert (photo.image_id, photo.rotation) == (f"{1:016x}", 270)
    assert lookup(path, f"{prefix}{5:016x}.jpg") == Photo(f"{5:016x}")


def test_lookup_by_local_name(tmp_path: Path) -> None:
    path = write_list(tmp_path / "list.csv", [row(1)])
    photo = lookup(path, "", f"train_0/{1:016x}.jpg")
    assert photo is not None
    assert photo.image_id == f"{1:016x}"
    assert lookup(path, "", f"train_0/{2:016x}.jpg") is None
    assert lookup(path, "", "photos/1.jpg") is None


@pytest.mark.parametrize(
    ("text", "degrees"), [("0.0", 0), ("180.0", 180), ("", None), ("nan", None), ("45.0", None), ("x", None)]
)
def test_rotation_is_a_multiple_of_90_degrees_or_unknown(
    tmp_path: Path, text: str, degrees: int | None
) -> None:
    photo = lookup(write_list(tmp_path / "list.csv", [row(1, Rotation=text)]), flickr(1))
    assert photo is not None
    assert photo.rotation == degrees


def test_missing_columns_and_cells_are_unknown(tmp_path: Path) -> None:
    path = write_list(tmp_path / "list.csv", [row(1)], ("OriginalURL", "ImageID"), start="\ufeff")
    assert lookup(path, flickr(1)) == Photo(f"{1:016x}", None, "")
    path = write_list(tmp_path / "list.csv", [row(1, Title="", License="", Author=" A\n B ")])
    photo = lookup(path, flickr(1))
    assert photo is not None
    assert photo.attribution == f"photograph by A B · {landing(1)}"


def test_invalid_rows_are_skipped_and_counted(tmp_path: Path) -> None:
    rows = [row(1), row(2, ImageID="no id"), row(3, OriginalURL=""), row(4, OriginalURL="http://[x/"), row(5)]
    path = write_list(tmp_path / "list.csv", rows)
    lines: list[str] = []
    with open_photos(source(open_images={"csv": str(path)}), SETTINGS, lines.append) as photos:
        assert photos.lookup(flickr(5), "") is not None
    assert lines == [f"{path}: 2 photos read, 3 rows without ImageID or URL skipped"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no column ImageID and no column OriginalURL"),
        ("ImageID,Title\n0,x\n", "no column OriginalURL"),
        ("ImageID,OriginalURL\n", "the list has no photos"),
        ("<html>\n", "is it train-images-boxable-with-rotation.csv"),
        ('ImageID,OriginalURL\n0,"' + "x" * 200_000 + '"\n', "line 2: not CSV"),
    ],
)
def test_another_file_raises_source_error(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "list.csv"
    path.write_text(text)
    with pytest.raises(SourceError, match=words):
        lookup(path, flickr(1))


def test_an_index_is_built_once_and_again_when_the_list_changes(tmp_path: Path, own_home: Path) -> None:
    path = aged(write_list(tmp_path / "list.csv", [row(1)]))
    lines: list[str] = []

    def count() -> int:
        with open_photos(source(open_images={"csv": str(path)}), SETTINGS, lines.append) as photos:
            return sum(photos.lookup(flickr(number), "") is not None for number in range(5))

    assert (count(), count(), len(lines)) == (1, 1, 1)
    write_list(path, [row(1), row(2)])
    assert (count(), len(lines)) == (2, 2)
    (index,) = (own_home / "sources").glob("open-images-*.sqlite")
    index.write_bytes(b"cut")
    assert (count(), len(lines)) == (2, 3)
    assert not list((own_home / "sources").glob(".tmp-*"))


def test_a_list_from_a_url_is_downloaded_once(tmp_path: Path, server: Server) -> None:
    data = write_list(tmp_path / "list.csv", [row(1)]).read_bytes()
    server.answers["/list.csv"] = conditional(data, ETag='"1"')
    settings = source(open_images={"csv": f"{server.url}/list.csv"})
    for _ in range(3):
        with open_photos(settings, SETTINGS, quiet) as photos:
            assert photos.lookup(flickr(1), "") is not None
    assert server.sent_bytes["/list.csv"] == len(data)


def test_a_missing_folder_raises_source_error(tmp_path: Path) -> None:
    settings = source(open_images={"folder": str(tmp_path / "none")})
    with (
        pytest.raises(SourceError, match=r"source\.open_images\.folder: .*none: no such folder"),
        open_photos(settings, SETTINGS, quiet),
    ):
        pass


class TestCandidates:
    photo = Photo(f"{1:016x}")

    @pytest.mark.parametrize(
        "order", [["local", "mirror", "original"], ["original", "local", "mirror"], ["mirror"], ["local"]]
    )
    def test_candidates_have_the_profiles_order(self, tmp_path: Path, order: list[str]) -> None:
        path = tmp_path / f"{1:016x}.jpg"
        path.write_bytes(b"picture")
        photos = Photos(source(photos_from=order, open_images={"folder": str(tmp_path)}))
        locations = {
            "local": ["local:/a/b.jpg", f"local:{path}"],
            "mirror": [f"{MIRROR}{1:016x}.jpg"],
            "original": [flickr(1)],
        }
        expected = [location for name in order for location in locations[name]]
        assert photos.candidates(flickr(1), "/a/b.jpg", self.photo) == expected

    def test_a_folder_without_the_image_is_not_a_candidate(self, tmp_path: Path) -> None:
        photos = Photos(source(photos_from=["local"], open_images={"folder": str(tmp_path)}))
        assert photos.candidates(flickr(1), "", self.photo) == []

    def test_the_mirror_is_configurable(self) -> None:
        photos = Photos(source(open_images={"mirror_prefix": "http://mirror.example.org/oi/"}))
        url = f"http://mirror.example.org/oi/{1:016x}.jpg"
        assert photos.lookup(url, "") == self.photo
        assert photos.candidates(url, "", self.photo) == [url]

    def test_the_mirror_and_the_folder_do_not_have_parts_of_photos(self) -> None:
        photos, part = Photos(source()), f"{flickr(1)}#xywh=0,0,64,64"
        assert photos.candidates(part, "/a/b.jpg", self.photo) == ["local:/a/b.jpg"]
        assert photos.candidates(part, "", self.photo) == [part]

    @given(st.text(), st.text())
    def test_any_names_can_be_looked_up(self, url: str, name: str) -> None:
        photos = Photos(source())
        photo = photos.lookup(url, name)
        assert photos.candidates(url, "", photo) == ([url] if url else [])


def test_records_without_a_list(tmp_path: Path) -> None:
    (stored,) = build(tmp_path, profile_of(write_manifest(tmp_path, [record(1)])))
    assert stored["source_id"] == source_id(stored["input_url"])
    assert stored["input_candidates"] == [stored["input_url"]]
    assert stored["rotation"] is None
    assert stored["attribution"] == f"photograph: {stored['input_url']}"


def test_a_listed_photo_gives_source_id_candidates_and_attribution(tmp_path: Path) -> None:
    path = write_list(tmp_path / "list.csv", [row(1, Rotation="90.0")])
    manifest = write_manifest(tmp_path, [record(1, open_image_input_url=flickr(1)), record(2)])
    rows = build(tmp_path, profile_of(manifest, source={"open_images": {"csv": str(path)}}))
    (stored,) = [row for row in rows if row["input_url"] == flickr(1)]
    assert stored["source_id"] == f"{1:016x}"
    assert stored["input_candidates"] == [f"{MIRROR}{1:016x}.jpg", flickr(1)]
    assert stored["rotation"] == 90
    assert stored["attribution"] == f"A dune, 1 by Ann · {BY} · {landing(1)}"


def test_a_photo_without_a_location_is_a_reject(tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path, [record(1), record(2, open_image_input_url=f"{MIRROR}{2:016x}.jpg")])
    rows = build(tmp_path, profile_of(manifest, source={"photos_from": ["mirror"]}))
    assert [row["line"] for row in rows] == [2]
    (reject,) = read_table(LocalStore(tmp_path / "store"), paths.MANIFEST_REJECTS)
    assert reject["reason"].startswith("no location in source.photos_from has the photo: ")


def test_a_photo_with_two_urls_is_in_one_shard(tmp_path: Path) -> None:
    numbers = range(1, 13)
    path = write_list(tmp_path / "list.csv", [row(number) for number in numbers])
    sft = [record(n, open_image_input_url=flickr(n)) for n in numbers]
    preference = [
        record(n + 100, open_image_input_url=f"{MIRROR}{n:016x}.jpg", rejected_images=["a.png"])
        for n in numbers
    ]
    chains = [chain(n, original=flickr(n).replace("https", "http")) for n in numbers]
    paths = [
        write_manifest(tmp_path, lines, name)
        for name, lines in (("a.jsonl", sft), ("b.jsonl", preference), ("c.jsonl", chains))
    ]
    rows = build(tmp_path, profile_of(*paths, source={"open_images": {"csv": str(path)}}))
    shards: dict[str, set[tuple[str, str]]] = {}
    for entry in rows:
        shards.setdefault(entry["source_id"], set()).add((entry["split"], entry["shard"]))
    assert set(shards) == {f"{number:016x}" for number in numbers}
    assert all(len(names) == 1 for names in shards.values())
    assert len(set.union(*shards.values())) > 1
    assert len(rows) == 12 * 5


def test_an_edit_with_two_urls_of_its_photo_is_an_exact_duplicate(tmp_path: Path) -> None:
    path = write_list(tmp_path / "list.csv", [row(1)])
    lines = [record(1, open_image_input_url=url) for url in (flickr(1), f"{MIRROR}{1:016x}.jpg")]
    manifest = write_manifest(tmp_path, lines)
    rows = build(tmp_path, profile_of(manifest, source={"open_images": {"csv": str(path)}}))
    assert [row["line"] for row in rows] == [1]
    (reject,) = read_table(LocalStore(tmp_path / "store"), paths.MANIFEST_REJECTS)
    assert reject["reason"] == "exact duplicate: line 2 repeats line 1"


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_a_pair_with_one_rotated_image_aligns(turns: int) -> None:
    """Pixels are not rotated by `rotation` because alignment does not need it."""
    photo = make_photo(3, (640, 480))
    alignment = align(photo, np.ascontiguousarray(np.rot90(edited(photo), turns)), AlignSettings())
    assert alignment.accepted
    assert alignment.overlap_share > 0.95


def test_the_pico_banana_profile_uses_the_public_list() -> None:
    from bananagrams_assets.profiles import load_profile

    settings = load_profile("pico-banana").profile.source
    assert settings.photos_from == ("local", "mirror", "original")
    assert settings.open_images.csv is not None
    assert settings.open_images.csv.endswith("/train-images-boxable-with-rotation.csv")
    assert json.loads(settings.model_dump_json())["open_images"]["mirror_prefix"] == MIRROR
