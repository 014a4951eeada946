from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from bananagrams_assets.cli import main
from bananagrams_assets.config import Profile, SampleSettings
from bananagrams_assets.evaluation import mask_check
from bananagrams_assets.evaluation.cases import EvaluationError, read_cases
from bananagrams_assets.evaluation.mask_check import mask_ious, measured_mask_ious
from bananagrams_assets.evaluation.mask_evaluation import PairScore, score_folder, summarise_scores
from bananagrams_assets.evaluation.scores_page import write_evaluation
from bananagrams_assets.graph import ALIGNED_PAIRS, EDIT_MASKS
from bananagrams_assets.sample.sample_folder import make_sample
from bananagrams_assets.storage.local import LocalStore
from bananagrams_tests.vision.images import box, textured


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    make_sample(folder, SampleSettings(pairs=8, side_px=160))
    return folder


@pytest.fixture
def named(tmp_path: Path) -> Path:
    """Write a pair with a patch and one without a change, identified only by their file names."""
    folder = tmp_path / "named"
    (folder / "more").mkdir(parents=True)
    for number, (name, edited) in enumerate((("patch", True), ("more/same", False))):
        before = textured(number)
        truth = box(before, 0.3, 0.3, 0.6, 0.7) & edited
        after = np.where(truth[..., None], textured(9 + number)[..., ::-1], before)
        Image.fromarray(before).save(folder / f"{name}.before.png")
        Image.fromarray(after.astype(np.uint8)).save(folder / f"{name}.after.png")
        Image.fromarray(truth.astype(np.uint8) * 255).save(folder / f"{name}.truth.png")
    metadata = {
        "family": "patch",
        "strength": 0,
        "homography": [1, 0, 0, 0, 1, 0, 0, 0, 1],
        "text": "<b>Swap</b> it.",
    }
    (folder / "patch.json").write_text(json.dumps(metadata))
    return folder


def _quiet(line: str) -> None:
    pass


def test_made_sample_is_scored_by_family_and_strength(sample: Path) -> None:
    cases = read_cases(sample)
    assert [case.name for case in cases] == [str(number) for number in range(1, 9)]
    summary = summarise_scores(score_folder(cases, Profile(), 1, _quiet))
    assert summary["pairs"] == 8
    assert not summary["not_read"]
    assert summary["local"]["iou"] > 0.75
    assert set(summary["by_strength"]) == {"1"}
    assert sum(row["pairs"] for row in summary["by_family"].values()) == summary["local"]["pairs"]
    assert summary["corner_px"]["pairs"] == 8 - summary["not_aligned"]


def test_scores_do_not_depend_on_the_number_of_workers(sample: Path) -> None:
    cases = read_cases(sample)[:4]
    assert score_folder(cases, Profile(), 1, _quiet) == score_folder(cases, Profile(), 2, _quiet)


def test_pairs_may_be_identified_by_file_names(named: Path) -> None:
    cases = read_cases(named)
    assert [case.name for case in cases] == ["more/same", "patch"]
    same, patch = score_folder(cases, Profile(), 1, _quiet)
    assert (same.truth, same.verdict, same.false_area, same.corner_px) == ("nothing", "nothing", 0.0, None)
    assert (patch.truth, patch.verdict, patch.family) == ("local", "local", "patch")
    assert patch.iou > 0.9
    assert patch.corner_px is not None
    assert patch.corner_px < 0.5


def test_page_needs_no_other_file_and_shows_the_worst_pairs_first(named: Path, tmp_path: Path) -> None:
    cases = read_cases(named)
    scores = score_folder(cases, Profile(), 1, _quiet)
    page = write_evaluation(cases, scores, Profile(), tmp_path / "scores").read_text(encoding="utf-8")
    assert page.count("<article>") == 2
    assert page.count("data:image/jpeg;base64,") == 4
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert page.index("<b>patch</b>") < page.index("<b>more/same</b>")
    assert "&lt;b&gt;Swap" in page
    rows = list(csv.DictReader((tmp_path / "scores" / "pairs.csv").open(encoding="utf-8")))
    assert [row["name"] for row in rows] == ["more/same", "patch"]
    assert json.loads((tmp_path / "scores" / "scores.json").read_text())["pairs"] == 2


def test_unreadable_pair_has_a_row_with_the_problem(named: Path) -> None:
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(named / "patch.truth.png")
    (named / "more" / "same.after.png").write_bytes(b"<html>")
    scores = score_folder(read_cases(named), Profile(), 1, _quiet)
    summary = summarise_scores(scores)
    assert "starts with '<html>'" in summary["not_read"]["more/same"]
    assert summary["not_read"]["patch"] == "the true mask has 5 x 5 px, the before image 240 x 180 px"
    assert summary["local"] == {
        "pairs": 0,
        "iou": None,
        "precision": None,
        "recall": None,
        "boundary_f": None,
    }


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "patch.truth.png").unlink(), r"patch\.truth\.png is missing"),
        (lambda folder: (folder / "patch.after.png").unlink(), r"has no patch\.after"),
        (lambda folder: (folder / "patch.json").write_text("{"), r"patch\.json: not JSON"),
        (lambda folder: (folder / "patch.json").write_text('{"homography": [1]}'), "9 finite numbers"),
        (lambda folder: (folder / "patch.json").write_text('{"is_global": "no"}'), "is_global must be"),
        (lambda folder: (folder / "patch.json").write_text('{"strength": "much"}'), "could not convert"),
        (lambda folder: (folder / "truth.jsonl").write_text("{}\n"), r"sft\.jsonl is missing"),
    ],
)
def test_error_of_an_invalid_folder_names_the_file(named: Path, damage: Any, message: str) -> None:
    damage(named)
    with pytest.raises(EvaluationError, match=message):
        read_cases(named)


def test_error_of_an_empty_folder_describes_the_file_names(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"NAME\.truth\.png"):
        read_cases(tmp_path)


def test_wrong_verdicts_and_wrong_alignments_are_counted() -> None:
    def score(truth: str, verdict: str, corner_px: float | None, confidence: float, iou: float) -> PairScore:
        return PairScore(
            "n", "f", 1.0, truth, verdict, True, "", iou, 1, 1, 1, 0.1, corner_px, confidence, confidence
        )

    summary = summarise_scores(
        [
            score("local", "local", 0.5, 0.9, 0.9),
            score("local", "global", 9.0, 0.2, 0.3),
            score("global", "local", 0.5, 0.8, 0.5),
            score("nothing", "nothing", None, 0.7, 1.0),
        ]
    )
    assert summary["verdicts"] == {
        "local": {"global": 1, "local": 1},
        "global": {"local": 1},
        "nothing": {"nothing": 1},
    }
    assert summary["corner_px"]["over_8"] == 1
    assert [row["auroc"] for row in summary["confidence"].values()] == [1.0, 1.0]
    assert summary["false_area"] == {"pairs": 1, "mean": 0.1, "max": 0.1}


def test_command_prints_and_writes_the_scores(named: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(
        main, ["evaluate-masks", str(named), "--output", str(tmp_path / "out"), "--workers", "1"]
    )
    assert done.exit_code == 0, done.output
    assert "true verdict local: predicted local 1" in done.output
    assert (tmp_path / "out" / "index.html").is_file()
    empty = CliRunner().invoke(
        main, ["evaluate-masks", str(tmp_path / "out"), "--output", str(tmp_path / "x")]
    )
    assert empty.exit_code == 1
    assert "has no pairs" in empty.output


def test_check_distinguishes_good_settings_from_bad_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mask_check, "PAIRS", 2)
    values = [iou for ious in mask_ious(Profile()).values() for iou in ious]
    assert len(values) == 2
    assert np.mean(values) > Profile().checks.min_mask_iou
    blind = Profile.model_validate({"mask": {"threshold_high": 300.0}})
    assert np.mean([iou for ious in mask_ious(blind).values() for iou in ious]) < 0.1


def code_versions(profile: Profile) -> dict[str, str]:
    return {stage.name: stage.code_version(profile) for stage in (ALIGNED_PAIRS, EDIT_MASKS)}


def test_check_measures_once_for_each_code_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def measure(profile: Profile) -> dict[str, list[float]]:
        calls.append(profile.mask.close_px)
        return {"add": [0.9]}

    monkeypatch.setattr(mask_check, "mask_ious", measure)
    store = LocalStore(tmp_path)
    wider = Profile.model_validate({"mask": {"close_px": 11}})
    for profile in (Profile(), Profile(), wider, wider):
        assert measured_mask_ious(store, profile, code_versions(profile), _quiet) == {"add": [0.9]}
    assert calls == [9, 11]
    store.write("checks/mask_iou.json", b"[]")
    measured_mask_ious(store, wider, code_versions(wider), _quiet)
    assert calls == [9, 11, 11]
