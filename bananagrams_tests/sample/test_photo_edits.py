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
from bananagrams_assets.sample.edit import Edit
from bananagrams_assets.sample.inpaint import inpaint
from bananagrams_assets.sample.pairs import PHOTO_COUNTS, Scenes, make_photo_pair
from bananagrams_assets.sample.photo_edits import make_photo_edit
from bananagrams_assets.sample.photos import LABELS, PhotoError, folder_photos, packaged_photos, read_photo
from bananagrams_assets.sample.sample_folder import make_sample
from bananagrams_assets.sample.scene import Scene
from bananagrams_assets.sample.segments import Segment, segments_of
from bananagrams_assets.sample.visibility import Invisible, visible_part
from bananagrams_assets.sample.vocabulary import PHOTO_FAMILIES, UNTOUCHED, family_of
from bananagrams_assets.vision.geometry import warp
from bananagrams_tests.vision.images import textured

GLOBAL = {
    "tone", "vintage", "lighting", "season", "weather", "sketch", "art", "historical", "anime", "cel", "ink",
}  # fmt: skip
UNMASKED = {"zoom in", "outpaint", "untouched"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four photos, three with labels: a cup, a cat and a person, each in front of a wall."""
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


def _make_edits(family: str, scenes: Scenes, count: int = 2) -> list[Edit]:
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


def test_label_images_are_not_photos(folder: Path) -> None:
    photos = folder_photos(folder, pytest.fail)
    assert [photo.name for photo in photos] == ["astronaut.jpg", "chelsea.jpg", "coffee.jpg", "rocket.jpg"]


def test_segments_have_the_names_of_their_labels(scenes: Scenes) -> None:
    cup = next(segment for segment in scenes.get(2).segments if segment.countable)
    assert (cup.label, cup.reference, cup.unique) == ("cup", "the cup", True)
    assert 0.05 < cup.share < 0.1
    assert {segment.label for segment in scenes.get(2).segments} == {"cup", "wall"}


def test_regions_of_a_photo_without_labels_are_named_by_colour_and_place(scenes: Scenes) -> None:
    segments = scenes.get(3).segments
    assert segments
    assert all(segment.label in ("", "main object") for segment in segments)
    assert any(segment.reference.startswith("the ") and " area " in segment.reference for segment in segments)


@pytest.mark.parametrize("family", sorted(PHOTO_COUNTS))
def test_only_the_mask_changes_and_the_change_is_visible(family: str, scenes: Scenes) -> None:
    edits = _make_edits(family, scenes)
    assert len(edits) == 2
    for edit in edits:
        assert edit.before.dtype == edit.after.dtype == np.uint8
        assert edit.mask.shape == edit.before.shape[:2]
        assert "{" not in edit.text + edit.summary
        if family in GLOBAL:
            assert edit.verdict == "global"
            assert edit.mask.all()
        elif family in UNMASKED:
            assert edit.verdict == "nothing"
            assert edit.visibility == 0
        else:
            assert edit.verdict == "local"
            assert edit.visibility > 7
            change = np.abs(edit.before.astype(int) - edit.after).max(axis=2)
            # Outside the mask, only a feathered rim and invisible differences change.
            near = cv2.dilate(edit.mask.astype(np.uint8), np.ones((13, 13), np.uint8)) > 0
            assert np.percentile(change[~near], 99) < 30
            assert change[edit.mask].mean() > 3 * change[~edit.mask].mean()


@pytest.mark.parametrize("family", ["replace background", "blur background"])
def test_the_background_is_behind_the_largest_object(family: str, scenes: Scenes) -> None:
    rgb = textured(1, 320, 240)
    small, large = np.zeros((2, *rgb.shape[:2]), bool)
    small[10:90, 10:90] = large[100:, 40:220] = True
    segments = [Segment(small, "dog", True, "brown"), Segment(large, "cat", True, "grey")]

    def scene(*parts: Segment) -> Scene:
        return replace(scenes.get(1), rgb=rgb, find_segments=lambda _: list(parts))

    for seed in range(6):
        edit = make_photo_edit(family, scene(*segments), np.random.default_rng(seed))
        assert "dog" not in edit.text
        assert not edit.mask[large].any()
    with pytest.raises(Invisible, match="no foreground"):
        make_photo_edit(
            family, scene(*segments, Segment(~small, "bear", True, "brown")), np.random.default_rng(0)
        )


@pytest.mark.parametrize("family", ["zoom in", "outpaint"])
def test_the_homography_describes_the_change_of_the_frame(family: str, scenes: Scenes) -> None:
    for edit in _make_edits(family, scenes):
        assert edit.homography is not None
        warped, valid = warp(edit.after, edit.homography, (edit.before.shape[1], edit.before.shape[0]))
        inside = cv2.erode(valid.astype(np.uint8), np.ones((5, 5), np.uint8), borderValue=0) > 0
        assert inside.mean() > 0.3
        assert np.abs(warped.astype(int) - edit.before)[inside].mean() < 6


def test_most_edit_types_of_the_manifest_are_made() -> None:
    known = {kind.name for kind in EDIT_TYPES}
    made = {family_of(name)[0] for name in PHOTO_COUNTS}
    assert made - known == {UNTOUCHED}
    assert len(made & known) == 27
    assert set(PHOTO_FAMILIES) <= set(PHOTO_COUNTS)


def test_a_sample_of_a_folder_names_objects_and_does_not_depend_on_workers(
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


def test_a_pair_does_not_depend_on_other_pairs(scenes: Scenes, folder: Path) -> None:
    settings = SampleSettings(pairs=30, side_px=320)
    first = make_photo_pair(7, scenes, settings, (1.0,))
    again = make_photo_pair(7, Scenes(folder_photos(folder, pytest.fail), 320), settings, (1.0,))
    assert first.edit.text == again.edit.text
    assert np.array_equal(first.edited, again.edited)


def test_small_photos_are_enlarged_on_request(folder: Path) -> None:
    scenes = Scenes(folder_photos(folder, pytest.fail), 512, enlarge=True)
    assert max(scenes.get(2).rgb.shape) == 512
    assert scenes.get(2).segments[0].mask.shape == scenes.get(2).rgb.shape[:2]


def test_unreadable_labels_are_an_error(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 255, (120, 120, 3), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "a.jpg")
    (tmp_path / "a.png").write_bytes(b"not an image")
    (tmp_path / LABELS).write_text('[{"photo": "a.jpg", "objects": [{"id": 1, "category": "cat"}]}]')
    with pytest.raises(PhotoError, match=r"a\.png: unreadable label image"):
        segments_of(tmp_path / "a.jpg", image)
    Image.fromarray(np.zeros((120, 120, 3), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(PhotoError, match="has none of the segments"):
        segments_of(tmp_path / "a.jpg", image)


def test_an_invalid_list_of_objects_is_an_error(tmp_path: Path) -> None:
    image = np.zeros((120, 120, 3), np.uint8)
    Image.fromarray(image).save(tmp_path / "a.jpg")
    Image.fromarray(image).save(tmp_path / "a.png")
    (tmp_path / LABELS).write_text('[{"image": "a.jpg"}]')
    with pytest.raises(PhotoError, match=r"objects\.json: expected a list of photos"):
        segments_of(tmp_path / "a.jpg", image)


def _stripes() -> Any:
    columns = np.arange(160)[None, :, None] // 8 % 2 * 90 + 80
    return np.broadcast_to(columns, (120, 160, 3)).astype(np.uint8).copy()


def test_a_hole_in_a_pattern_is_inpainted_with_the_pattern() -> None:
    image, hole = _stripes(), np.zeros((120, 160), bool)
    hole[40:70, 60:100] = True
    damaged = image.copy()
    damaged[hole] = (200, 0, 0)
    filled = inpaint(damaged, hole, np.zeros_like(hole))
    assert np.abs(filled.astype(int) - image)[hole].mean() < 12
    assert np.array_equal(filled[:20], image[:20])


def test_a_hole_without_a_source_raises_invisible() -> None:
    hole = np.ones((120, 160), bool)
    hole[:3] = False
    with pytest.raises(Invisible):
        inpaint(_stripes(), hole, np.zeros_like(hole))


def test_an_invisible_edit_raises_invisible() -> None:
    image, painted = _stripes(), np.zeros((120, 160), bool)
    painted[20:60, 20:60] = True
    faint = np.where(painted[..., None], image + 3, image).astype(np.uint8)
    with pytest.raises(Invisible):
        visible_part(image, faint, painted, painted)
    half = image.copy()
    half[20:60, 20:35] = (250, 0, 0)
    with pytest.raises(Invisible, match="only 40% of the edit is visible"):
        visible_part(image, half, painted, painted)


def test_the_invisible_margin_of_a_removal_is_not_in_the_mask() -> None:
    wall = np.full((120, 160, 3), 128, np.uint8)
    before = wall.copy()
    before[40:80, 60:100] = (220, 30, 30)
    intended, painted = before[..., 0] == 220, np.zeros((120, 160), bool)
    painted[30:90, 50:110] = True
    visible = visible_part(before, wall, painted, intended)
    assert not visible[~(cv2.dilate(intended.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0)].any()
    assert visible[intended].all()


def test_donors_are_labelled_photos(scenes: Scenes) -> None:
    rng = np.random.default_rng(0)
    donors = [scenes.get(3).random_donor(rng) for _ in range(12)]
    assert all(isinstance(scene, Scene) and scene is not scenes.get(3) for scene in donors)
