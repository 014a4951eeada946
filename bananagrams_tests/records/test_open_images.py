"""Source photographs by ImageID: the list, the index made of it, and where each can be had."""

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
from bananagrams_assets.records.manifest_line import source_id
from bananagrams_assets.records.open_images import Photo, Photos, open_photos
from bananagrams_assets.records.sources import SourceError
from bananagrams_assets.stages.manifest import build_manifest
from bananagrams_assets.storage import paths
from bananagrams_assets.storage.local import LocalStore
from bananagrams_assets.storage.tables import read_table
from bananagrams_assets.vision.align import align

from ..photos import edited, photograph, profile_of, quiet, record, write_manifest
from ..servers import Server, conditional
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


def known(path: Path, url: str, local_name: str = "") -> Photo | None:
    with open_photos(source(open_images={"csv": str(path)}), SETTINGS, quiet) as photos:
        return photos.known(url, local_name)


def build(folder: Path, profile: Profile) -> list[dict[str, Any]]:
    store = LocalStore(folder / "store")
    build_manifest(store, profile, quiet)
    return [row for shard in profile.shard_keys() for row in read_table(store, paths.manifest_table(shard))]


def test_a_photograph_is_known_by_its_url(tmp_path: Path) -> None:
    path = write_list(tmp_path / "list.csv", [row(1), row(2, Rotation="90.0"), row(3)])
    assert known(path, flickr(2)) == Photo(f"{2:016x}", 90, f"A dune, 2 by Ann · {BY} · {landing(2)}")
    assert known(path, flickr(4)) is None


@pytest.mark.parametrize(
    "url",
    [flickr(1).replace("https", "http"), flickr(1).replace("c1.static", "C1.Static"),
     f"{flickr(1)}#xywh=0,0,9,9", flickr(1).replace(".com/", ".com:443/")],
)  # fmt: skip
def test_spelling_of_a_url_does_not_matter(tmp_path: Path, url: str) -> None:
    found = known(write_list(tmp_path / "list.csv", [row(1)]), url)
    assert found is not None
    assert found.image_id == f"{1:016x}"


@pytest.mark.parametrize(
    "prefix", [MIRROR, MIRROR.replace("https", "http"), "https://s3.amazonaws.com/open-images-dataset/train/"]
)
def test_a_photograph_is_known_by_the_mirrors_url(tmp_path: Path, prefix: str) -> None:
    path = write_list(tmp_path / "list.csv", [row(1, Rotation="270.0")])
    found = known(path, f"{prefix}{1:016x}.jpg")
    assert found is not None
    assert (found.image_id, found.rotation) == (f"{1:016x}", 270)
    assert known(path, f"{prefix}{5:016x}.jpg") == Photo(f"{5:016x}")


def test_a_photograph_is_known_by_its_local_name(tmp_path: Path) -> None:
    path = write_list(tmp_path / "list.csv", [row(1)])
    found = known(path, "", f"train_0/{1:016x}.jpg")
    assert found is not None
    assert found.image_id == f"{1:016x}"
    assert known(path, "", f"train_0/{2:016x}.jpg") is None
    assert known(path, "", "photos/1.jpg") is None


@pytest.mark.parametrize(
    ("text", "degrees"), [("0.0", 0), ("180.0", 180), ("", None), ("nan", None), ("45.0", None), ("x", None)]
)
def test_rotation_is_a_quarter_turn_or_unknown(tmp_path: Path, text: str, degrees: int | None) -> None:
    found = known(write_list(tmp_path / "list.csv", [row(1, Rotation=text)]), flickr(1))
    assert found is not None
    assert found.rotation == degrees


def test_what_the_list_does_not_say_is_left_out(tmp_path: Path) -> None:
    path = write_list(tmp_path / "list.csv", [row(1)], ("OriginalURL", "ImageID"), start="\ufeff")
    assert known(path, flickr(1)) == Photo(f"{1:016x}", None, "")
    path = write_list(tmp_path / "list.csv", [row(1, Title="", License="", Author=" A\n B ")])
    found = known(path, flickr(1))
    assert found is not None
    assert found.attribution == f"photograph by A B · {landing(1)}"


def test_bad_rows_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = [row(1), row(2, ImageID="no id"), row(3, OriginalURL=""), row(4, OriginalURL="http://[x/"), row(5)]
    path = write_list(tmp_path / "list.csv", rows)
    said: list[str] = []
    with open_photos(source(open_images={"csv": str(path)}), SETTINGS, said.append) as photos:
        assert photos.known(flickr(5), "") is not None
    assert said == [f"{path}: 2 photographs read, 3 rows without ImageID or URL left out"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no column ImageID and no column OriginalURL"),
        ("ImageID,Title\n0,x\n", "no column OriginalURL"),
        ("ImageID,OriginalURL\n", "no photograph in it"),
        ("<html>\n", "is it train-images-boxable-with-rotation.csv"),
        ('ImageID,OriginalURL\n0,"' + "x" * 200_000 + '"\n', "line 2: not CSV"),
    ],
)
def test_another_file_is_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "list.csv"
    path.write_text(text)
    with pytest.raises(SourceError, match=words):
        known(path, flickr(1))


def test_an_index_is_made_once_and_again_when_the_list_changes(tmp_path: Path, own_home: Path) -> None:
    path = aged(write_list(tmp_path / "list.csv", [row(1)]))
    said: list[str] = []

    def count() -> int:
        with open_photos(source(open_images={"csv": str(path)}), SETTINGS, said.append) as photos:
            return sum(photos.known(flickr(number), "") is not None for number in range(5))

    assert (count(), count(), len(said)) == (1, 1, 1)
    write_list(path, [row(1), row(2)])
    assert (count(), len(said)) == (2, 2)
    (index,) = (own_home / "sources").glob("open-images-*.sqlite")
    index.write_bytes(b"cut")
    assert (count(), len(said)) == (2, 3)
    assert not list((own_home / "sources").glob(".tmp-*"))


def test_a_list_by_url_is_sent_once(tmp_path: Path, server: Server) -> None:
    data = write_list(tmp_path / "list.csv", [row(1)]).read_bytes()
    server.answers["/list.csv"] = conditional(data, ETag='"1"')
    settings = source(open_images={"csv": f"{server.url}/list.csv"})
    for _ in range(3):
        with open_photos(settings, SETTINGS, quiet) as photos:
            assert photos.known(flickr(1), "") is not None
    assert server.sent["/list.csv"] == len(data)


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
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
    def test_they_stand_in_the_profiles_order(self, tmp_path: Path, order: list[str]) -> None:
        path = tmp_path / f"{1:016x}.jpg"
        path.write_bytes(b"picture")
        photos = Photos(source(photos_from=order, open_images={"folder": str(tmp_path)}))
        places = {
            "local": ["local:/a/b.jpg", f"local:{path}"],
            "mirror": [f"{MIRROR}{1:016x}.jpg"],
            "original": [flickr(1)],
        }
        expected = [place for name in order for place in places[name]]
        assert photos.candidates(flickr(1), "/a/b.jpg", self.photo) == expected

    def test_a_folder_without_the_image_is_none(self, tmp_path: Path) -> None:
        photos = Photos(source(photos_from=["local"], open_images={"folder": str(tmp_path)}))
        assert photos.candidates(flickr(1), "", self.photo) == []

    def test_the_mirror_may_be_another(self) -> None:
        photos = Photos(source(open_images={"mirror_prefix": "http://mirror.example.org/oi/"}))
        url = f"http://mirror.example.org/oi/{1:016x}.jpg"
        assert photos.known(url, "") == self.photo
        assert photos.candidates(url, "", self.photo) == [url]

    def test_a_part_of_a_photograph_is_not_served_by_the_whole(self) -> None:
        photos, part = Photos(source()), f"{flickr(1)}#xywh=0,0,64,64"
        assert photos.candidates(part, "/a/b.jpg", self.photo) == ["local:/a/b.jpg"]
        assert photos.candidates(part, "", self.photo) == [part]

    @given(st.text(), st.text())
    def test_any_names_are_looked_up(self, url: str, name: str) -> None:
        photos = Photos(source())
        found = photos.known(url, name)
        assert photos.candidates(url, "", found) == ([url] if url else [])


def test_without_a_list_records_are_as_they_were(tmp_path: Path) -> None:
    (found,) = build(tmp_path, profile_of(write_manifest(tmp_path, [record(1)])))
    assert found["source_id"] == source_id(found["input_url"])
    assert found["input_candidates"] == [found["input_url"]]
    assert found["rotation"] is None
    assert found["attribution"] == f"photograph: {found['input_url']}"


def test_a_known_photograph_gives_its_name_its_places_and_its_author(tmp_path: Path) -> None:
    path = write_list(tmp_path / "list.csv", [row(1, Rotation="90.0")])
    manifest = write_manifest(tmp_path, [record(1, open_image_input_url=flickr(1)), record(2)])
    rows = build(tmp_path, profile_of(manifest, source={"open_images": {"csv": str(path)}}))
    (found,) = [row for row in rows if row["input_url"] == flickr(1)]
    assert found["source_id"] == f"{1:016x}"
    assert found["input_candidates"] == [f"{MIRROR}{1:016x}.jpg", flickr(1)]
    assert found["rotation"] == 90
    assert found["attribution"] == f"A dune, 1 by Ann · {BY} · {landing(1)}"


def test_a_photograph_that_no_place_has_is_a_reject(tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path, [record(1), record(2, open_image_input_url=f"{MIRROR}{2:016x}.jpg")])
    rows = build(tmp_path, profile_of(manifest, source={"photos_from": ["mirror"]}))
    assert [row["line"] for row in rows] == [2]
    (reject,) = read_table(LocalStore(tmp_path / "store"), paths.MANIFEST_REJECTS)
    assert reject["reason"].startswith("no place in source.photos_from has the photograph: ")


def test_one_photograph_under_two_addresses_is_in_one_split_and_one_shard(tmp_path: Path) -> None:
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
    found: dict[str, set[tuple[str, str]]] = {}
    for entry in rows:
        found.setdefault(entry["source_id"], set()).add((entry["split"], entry["shard"]))
    assert set(found) == {f"{number:016x}" for number in numbers}
    assert all(len(places) == 1 for places in found.values())
    assert len({place for places in found.values() for place in places}) > 1
    assert len(rows) == 12 * 5


def test_one_edit_under_two_addresses_of_its_photograph_is_an_exact_duplicate(tmp_path: Path) -> None:
    path = write_list(tmp_path / "list.csv", [row(1)])
    lines = [record(1, open_image_input_url=url) for url in (flickr(1), f"{MIRROR}{1:016x}.jpg")]
    manifest = write_manifest(tmp_path, lines)
    rows = build(tmp_path, profile_of(manifest, source={"open_images": {"csv": str(path)}}))
    assert [row["line"] for row in rows] == [1]
    (reject,) = read_table(LocalStore(tmp_path / "store"), paths.MANIFEST_REJECTS)
    assert reject["reason"] == "exact duplicate: line 2 repeats line 1"


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_a_pair_of_which_one_image_is_turned_aligns_all_the_same(turns: int) -> None:
    """Why `rotation` is recorded and no pixels are turned."""
    photo = photograph(3, (640, 480))
    found = align(photo, np.ascontiguousarray(np.rot90(edited(photo), turns)), AlignSettings())
    assert found.accepted
    assert found.overlap_share > 0.95


def test_the_profile_of_the_full_set_names_the_public_list() -> None:
    from bananagrams_assets.profiles import load_profile

    settings = load_profile("pico-banana").profile.source
    assert settings.photos_from == ("local", "mirror", "original")
    assert settings.open_images.csv is not None
    assert settings.open_images.csv.endswith("/train-images-boxable-with-rotation.csv")
    assert json.loads(settings.model_dump_json())["open_images"]["mirror_prefix"] == MIRROR
