from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from bananagrams_assets.config import SampleSettings
from bananagrams_assets.records.edit_types import EDIT_TYPES
from bananagrams_assets.sample import words
from bananagrams_assets.sample.edits import Edit
from bananagrams_assets.sample.fill import fill
from bananagrams_assets.sample.make import PHOTO_COUNTS, Scenes, make_photo_pair, make_sample
from bananagrams_assets.sample.photo_edits import Scene, make_photo_edit
from bananagrams_assets.sample.photos import LABELS, PhotoError, folder_photos, packaged_photos, read_photo
from bananagrams_assets.sample.segments import Segment, segments_of
from bananagrams_assets.sample.visible import Invisible, visible_truth
from bananagrams_assets.vision.geometry import warp
from bananagrams_tests.vision.images import textured

GLOBAL = {
    "tone", "vintage", "lighting", "season", "weather", "sketch", "art", "historical", "anime", "cel", "ink",
}  # fmt: skip
STILL = {"zoom in", "outpaint", "untouched"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs with labels for two of them: a cup, a cat and a person, each before a wall."""
    folder = tmp_path_factory.mktemp("photos")
    packaged = {photo.name: photo.path for photo in packaged_photos()}
    entries = []
    for name, category, box in (
        ("coffee", "cup", (0.3, 0.3, 0.26, 0.3)),
        ("chelsea", "cat", (0.45, 0.45, 0.2, 0.28)),
        ("astronaut", "person", (0.4, 0.55, 0.25, 0.4)),
    ):
        rgb = cv2.resize(read_photo(packaged[name]), (320, 256), interpolation=cv2.INTER_AREA)
        Image.fromarray(rgb).save(folder / f"{name}.jpg", quality=95)
        ids = np.full((256, 320), 70_000, np.int32)
        x, y, w, h = (round(share * side) for share, side in zip(box, (320, 256, 320, 256), strict=True))
        object_ = np.zeros((256, 320), np.uint8)
        cv2.ellipse(object_, (x, y), (w // 2, h // 2), 0, 0, 360, (1,), -1)
        ids[object_ > 0] = 300
        labels = np.dstack([ids % 256, ids // 256 % 256, ids // 65536]).astype(np.uint8)
        Image.fromarray(labels).save(folder / f"{name}.png")
        objects = [{"id": 300, "category": category}, {"id": 70_000, "category": "wall-other-merged"}]
        entries.append({"photo": f"{name}.jpg", "objects": objects})
    Image.open(packaged["rocket"]).resize((320, 214)).convert("RGB").save(folder / "rocket.jpg", quality=95)
    (folder / LABELS).write_text(json.dumps(entries))
    return folder


@pytest.fixture(scope="module")
def scenes(folder: Path) -> Scenes:
    return Scenes(folder_photos(folder, pytest.fail), 320)


def _draw(family: str, scenes: Scenes, count: int = 2) -> list[Edit]:
    edits: list[Edit] = []
    for seed in range(120):
        scene = scenes.get(seed % 4)
        try:
            edits.append(make_photo_edit(family, scene, np.random.default_rng(seed)))
        except Invisible:
            continue
        if len(edits) == count:
            break
    return edits


def test_label_images_are_no_photographs(folder: Path) -> None:
    found = folder_photos(folder, pytest.fail)
    assert [photo.name for photo in found] == ["astronaut.jpg", "chelsea.jpg", "coffee.jpg", "rocket.jpg"]


def test_segments_have_their_labels_names(scenes: Scenes) -> None:
    cup = next(segment for segment in scenes.get(2).segments if segment.thing)
    assert (cup.label, cup.the, cup.unique) == ("cup", "the cup", True)
    assert 0.05 < cup.share < 0.1
    assert {segment.label for segment in scenes.get(2).segments} == {"cup", "wall"}


def test_without_labels_regions_are_found_and_named_by_colour_and_place(scenes: Scenes) -> None:
    found = scenes.get(3).segments
    assert found
    assert all(segment.label in ("", "main object") for segment in found)
    assert any(segment.the.startswith("the ") and " area " in segment.the for segment in found)


@pytest.mark.parametrize("family", sorted(PHOTO_COUNTS))
def test_only_the_truth_changes_and_it_can_be_seen(family: str, scenes: Scenes) -> None:
    edits = _draw(family, scenes)
    assert len(edits) == 2
    for edit in edits:
        assert edit.before.dtype == edit.after.dtype == np.uint8
        assert edit.mask.shape == edit.before.shape[:2]
        assert "{" not in edit.text + edit.summary
        if family in GLOBAL:
            assert edit.verdict == "global"
            assert edit.mask.all()
        elif family in STILL:
            assert edit.verdict == "nothing"
            assert edit.visibility == 0
        else:
            assert edit.verdict == "local"
            assert edit.visibility > 7
            change = np.abs(edit.before.astype(int) - edit.after).max(axis=2)
            # The change ends where the truth does, but for a feathered rim and what is too faint to see.
            near = cv2.dilate(edit.mask.astype(np.uint8), np.ones((13, 13), np.uint8)) > 0
            assert np.percentile(change[~near], 99) < 30
            assert change[edit.mask].mean() > 3 * change[~edit.mask].mean()


@pytest.mark.parametrize("family", ["replace background", "blur background"])
def test_a_background_is_what_lies_behind_the_largest_object(family: str, scenes: Scenes) -> None:
    rgb = textured(1, 320, 240)
    small, large = np.zeros((2, *rgb.shape[:2]), bool)
    small[10:90, 10:90] = large[100:, 40:220] = True
    things = [Segment(small, "dog", True, "brown"), Segment(large, "cat", True, "grey")]

    def scene(*segments: Segment) -> Scene:
        return replace(scenes.get(1), rgb=rgb, find_segments=lambda _: list(segments))

    for seed in range(6):
        edit = make_photo_edit(family, scene(*things), np.random.default_rng(seed))
        assert "dog" not in edit.text
        assert not edit.mask[large].any()
    with pytest.raises(Invisible, match="no foreground"):
        make_photo_edit(
            family, scene(*things, Segment(~small, "bear", True, "brown")), np.random.default_rng(0)
        )


@pytest.mark.parametrize("family", ["zoom in", "outpaint"])
def test_the_frame_moves_as_the_homography_says(family: str, scenes: Scenes) -> None:
    for edit in _draw(family, scenes):
        assert edit.homography is not None
        drawn, known = warp(edit.after, edit.homography, (edit.before.shape[1], edit.before.shape[0]))
        inside = cv2.erode(known.astype(np.uint8), np.ones((5, 5), np.uint8), borderValue=0) > 0
        assert inside.mean() > 0.3
        assert np.abs(drawn.astype(int) - edit.before)[inside].mean() < 6


def test_edit_types_are_the_manifests_and_most_are_made() -> None:
    known = {kind.name for kind in EDIT_TYPES}
    made = {words.family(name)[0] for name in PHOTO_COUNTS}
    assert made - known == {words.UNTOUCHED}
    assert len(made & known) == 27
    assert set(words.PHOTO_FAMILIES) <= set(PHOTO_COUNTS)


def test_a_sample_of_a_folder_names_its_objects_and_does_not_depend_on_workers(
    folder: Path, tmp_path: Path
) -> None:
    settings = SampleSettings(pairs=36, side_px=200)
    for workers in (1, 2):
        make_sample(tmp_path / str(workers), settings, folder, workers=workers, strengths=(0.0, 2.0))
    one, two = (
        {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*.*") if path.is_file()}
        for root in (tmp_path / "1", tmp_path / "2")
    )
    assert one == two
    truths = [json.loads(line) for line in one["truth.jsonl"].splitlines()]
    assert [truth["strength"] for truth in truths] == [0.0, 2.0] * 18
    assert {truth["verdict"] for truth in truths} == {"local", "global", "nothing"}
    assert all((truth["visibility"] > 7) == (truth["verdict"] != "nothing") for truth in truths)
    texts = " ".join(json.loads(line)["text"] for line in one["sft.jsonl"].splitlines())
    assert "the cup" in texts or "the cat" in texts


def test_a_pair_depends_on_no_other_pair(scenes: Scenes, folder: Path) -> None:
    settings = SampleSettings(pairs=30, side_px=320)
    first = make_photo_pair(7, scenes, settings, (1.0,))
    again = make_photo_pair(7, Scenes(folder_photos(folder, pytest.fail), 320), settings, (1.0,))
    assert first.edit.text == again.edit.text
    assert np.array_equal(first.edited, again.edited)


def test_small_photographs_are_enlarged_where_that_is_asked_for(folder: Path) -> None:
    scenes = Scenes(folder_photos(folder, pytest.fail), 512, enlarge=True)
    assert max(scenes.get(2).rgb.shape) == 512
    assert scenes.get(2).segments[0].mask.shape == scenes.get(2).rgb.shape[:2]


def test_labels_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 255, (120, 120, 3), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "a.jpg")
    (tmp_path / "a.png").write_bytes(b"no picture")
    (tmp_path / LABELS).write_text('[{"photo": "a.jpg", "objects": [{"id": 1, "category": "cat"}]}]')
    with pytest.raises(PhotoError, match=r"a\.png: not a readable picture of labels"):
        segments_of(tmp_path / "a.jpg", image)
    Image.fromarray(np.zeros((120, 120, 3), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(PhotoError, match="holds none of the segments"):
        segments_of(tmp_path / "a.jpg", image)


def test_a_list_of_objects_that_is_none_is_named(tmp_path: Path) -> None:
    image = np.zeros((120, 120, 3), np.uint8)
    Image.fromarray(image).save(tmp_path / "a.jpg")
    Image.fromarray(image).save(tmp_path / "a.png")
    (tmp_path / LABELS).write_text('[{"picture": "a.jpg"}]')
    with pytest.raises(PhotoError, match=r"objects\.json: not a list of photographs"):
        segments_of(tmp_path / "a.jpg", image)


def _stripes() -> Any:
    columns = np.arange(160)[None, :, None] // 8 % 2 * 90 + 80
    return np.broadcast_to(columns, (120, 160, 3)).astype(np.uint8).copy()


def test_a_hole_in_a_pattern_is_filled_with_the_pattern() -> None:
    image, hole = _stripes(), np.zeros((120, 160), bool)
    hole[40:70, 60:100] = True
    spoiled = image.copy()
    spoiled[hole] = (200, 0, 0)
    filled = fill(spoiled, hole, np.zeros_like(hole))
    assert np.abs(filled.astype(int) - image)[hole].mean() < 12
    assert np.array_equal(filled[:20], image[:20])


def test_a_hole_that_nothing_fits_is_refused() -> None:
    hole = np.ones((120, 160), bool)
    hole[:3] = False
    with pytest.raises(Invisible):
        fill(_stripes(), hole, np.zeros_like(hole))


def test_an_edit_that_nobody_sees_is_no_truth() -> None:
    image, painted = _stripes(), np.zeros((120, 160), bool)
    painted[20:60, 20:60] = True
    faint = np.where(painted[..., None], image + 3, image).astype(np.uint8)
    with pytest.raises(Invisible):
        visible_truth(image, faint, painted, painted)
    half = image.copy()
    half[20:60, 20:35] = (250, 0, 0)
    with pytest.raises(Invisible, match="40% of the edit can be seen"):
        visible_truth(image, half, painted, painted)


def test_the_margin_that_a_removal_paints_over_unseen_is_no_truth() -> None:
    wall = np.full((120, 160, 3), 128, np.uint8)
    before = wall.copy()
    before[40:80, 60:100] = (220, 30, 30)
    meant, painted = before[..., 0] == 220, np.zeros((120, 160), bool)
    painted[30:90, 50:110] = True
    truth = visible_truth(before, wall, painted, meant)
    assert not truth.mask[~(cv2.dilate(meant.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0)].any()
    assert truth.shown == 1


def test_scenes_draw_donors_from_labelled_photographs_alone(scenes: Scenes) -> None:
    rng = np.random.default_rng(0)
    drawn = [scenes.get(3).donors(rng) for _ in range(12)]
    assert all(isinstance(scene, Scene) and scene is not scenes.get(3) for scene in drawn)
