"""Publish a trained network: score it, write its files to the store and register it in MLflow."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from ..config import ConfigError, Profile
from ..progress import Log
from ..storage import paths
from ..storage.store import Store
from ..vision.images import encode_jpeg, fit
from . import checkpoint, registry, report
from .baselines import mean_mask
from .dataset import DatasetError, Split, open_split
from .evaluate import best_threshold, sample_ious, score
from .job_file import OUTPUT, TrainingJob, last_checkpoint
from .network import MaskNet
from .predict import Predictor, load_predictor, make_predictor
from .registry import CARD, DESCRIPTION, WEIGHTS
from .tracking import RunLog


def publish(
    job: TrainingJob,
    store: Store,
    net: MaskNet,
    train_split: Split,
    dev_split: Split,
    facts: Mapping[str, Any],
    run_log: RunLog,
    log: Log,
) -> dict[str, Any]:
    """Score the network, log the results, register it and write it to the store.

    `facts` (`steps`, `best_step`, `seconds`) goes to the summary. Return the content of model.json.
    """
    profile = job.profile
    side_px = profile.train.side_px
    threshold = best_threshold(make_predictor(net, side_px), dev_split)  # selected on dev, also used on test
    predictor = make_predictor(net, side_px, description={"threshold": threshold})
    scores = _score_splits(store, predictor, train_split, dev_split, run_log, log)
    for split_scores in scores.values():
        _log_scores(split_scores, facts["steps"], run_log, log)
    weights = safetensors.torch.save(checkpoint.model_weights(net))
    digests = {"train": train_split.digest, **{split: found["dataset"] for split, found in scores.items()}}
    content: dict[str, Any] = {
        "format": 1,
        **model_sections(profile),
        "threshold": threshold,
        "sha256": hashlib.sha256(weights).hexdigest(),
        "run_id": job.mlflow_run_id,
        "dataset": digests,
        "summary": {**_summary(scores), **facts},
        "metrics": scores,
        "torch": torch.__version__,
    }
    indexes = {split: json.loads(store.read(paths.index_json(split))) for split in digests}
    card = report.model_card(profile, content, indexes)
    run_log.file("metrics.json", json.dumps(scores, indent=1).encode())
    run_log.file(CARD, card.encode())
    run_log.file("dev_predictions.png", report.encode_png(report.overlay_sheet(predictor, dev_split)))
    _log_checkpoint(store, job, run_log)
    with open_split(store, "test") if "test" in scores else nullcontext(dev_split) as split:
        champion_tags = _score_champion(split, job, predictor, run_log, log)
    content["version"] = _register(job, weights, content, card, dev_split, champion_tags)
    store.write(f"{OUTPUT}/{WEIGHTS}", weights)
    store.write(f"{OUTPUT}/{DESCRIPTION}", json.dumps(content, indent=1).encode())
    name = profile.mlflow.registered_model
    log(f"registered as {name} version {content['version']}, alias {registry.CHALLENGER}")
    return content


def model_sections(profile: Profile) -> dict[str, Any]:
    """Return the sections of the profile that are needed to rebuild a stored model."""
    return {"model": profile.model.model_dump(mode="json"), "train": profile.train.model_dump(mode="json")}


def _score_splits(
    store: Store, predictor: Predictor, train_split: Split, dev_split: Split, run_log: RunLog, log: Log
) -> dict[str, dict[str, Any]]:
    """Return `evaluate.score` of dev and, if it exists, of test."""
    mean = mean_mask(train_split)
    scores = {"dev": score(predictor, dev_split, mean)}
    try:
        with open_split(store, "test") as test_split:
            scores["test"] = score(predictor, test_split, mean)
            run_log.dataset(test_split, store.describe(paths.index_json("test")), "testing")
    except DatasetError as error:
        log(f"not scored on test: {error}")
    return scores


def _log_scores(scores: Mapping[str, Any], step: int, run_log: RunLog, log: Log) -> None:
    """Log one split's scores as MLflow metrics and as one line."""
    split = scores["split"]
    values = {f"{split}_{key}": value for key, value in scores["model"].items()}
    values[f"{split}_shuffled_iou"] = scores["shuffled"]
    values[f"{split}_blind_iou"] = scores["blind"]
    values.update({f"{split}_{key}_mask_iou": value for key, value in scores["baselines"].items()})
    run_log.metrics(values, step)
    baselines = ", ".join(f"{key} {value:.3f}" for key, value in scores["baselines"].items())
    low, high = scores["intervals"]["mean_iou"]
    log(
        f"{split}: mean IoU {scores['model']['mean_iou']:.3f} (95% interval {low:.3f} to {high:.3f}), "
        f"overall {scores['model']['overall_iou']:.3f} at threshold {scores['threshold']:g}; trivial masks "
        f"{baselines}; shuffled instructions {scores['shuffled']:.3f}, none {scores['blind']:.3f}"
    )


def _summary(scores: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    dev = scores["dev"]
    return {
        "dev_iou": dev["model"]["mean_iou"],
        "baselines": dev["baselines"],
        "shuffled_iou": dev["shuffled"],
        **({"test_iou": scores["test"]["model"]["mean_iou"]} if "test" in scores else {}),
    }


def _register(
    job: TrainingJob,
    weights: bytes,
    content: Mapping[str, Any],
    card: str,
    dev_split: Split,
    champion_tags: Mapping[str, str],
) -> str:
    """Register the model from files in a temporary folder; return its version.

    Its tags are those that `promotion.promote` reads, and the datasets' digests. Its input example is the
    first dev sample.
    """
    summary, sample = content["summary"], dev_split[0]
    tags = {
        **job.tags,
        "dev_iou": repr(summary["dev_iou"]),
        "baseline_iou": repr(max(summary["baselines"].values())),
        "shuffled_iou": repr(summary["shuffled_iou"]),
        **{f"dataset_{split}": digest for split, digest in content["dataset"].items()},
        **champion_tags,
    }
    example = encode_jpeg(fit(sample.image, job.profile.train.side_px), 90), sample.text
    with tempfile.TemporaryDirectory(prefix="bananagrams-") as name:
        folder = Path(name)
        (folder / WEIGHTS).write_bytes(weights)
        (folder / DESCRIPTION).write_text(json.dumps(content, indent=1), encoding="utf-8")
        (folder / CARD).write_text(card, encoding="utf-8")
        return registry.register(job.tracking_uri, job.profile, job.mlflow_run_id, folder, example, tags)


def _score_champion(
    split: Split, job: TrainingJob, predictor: Predictor, run_log: RunLog, log: Log
) -> dict[str, str]:
    """Log the IoU per sample of this model and of the current champion, for `promotion.promote`.

    Return the tag with the champion's version, if it was scored.
    """
    own = sample_ious(predictor, split)
    run_log.file(registry.OWN_IOUS, json.dumps(asdict(own)).encode())
    uri, profile = job.tracking_uri, job.profile
    version = registry.find_version(uri, profile, registry.CHAMPION)
    if version is None:
        return {}
    other = registry.read_sample_ious(uri, registry.get_version(uri, profile, version).run_id)
    if other is None or other.dataset != own.dataset:
        try:
            champion = load_predictor(registry.download_model(uri, profile, version))
        except (registry.RegistryError, checkpoint.CheckpointError, ConfigError, OSError) as error:
            log(f"the champion, version {version}, cannot be scored on {split.name}: {error}")
            return {}
        other = sample_ious(champion, split)
        run_log.file(registry.CHAMPION_IOUS, json.dumps(asdict(other)).encode())
    log(f"the champion, version {version}, has {split.name} mean IoU {other.mean():.3f} on these samples")
    return {"champion_version": version}


def _log_checkpoint(store: Store, job: TrainingJob, run_log: RunLog) -> None:
    """Copy the last checkpoint to the MLflow run, so that `bananagrams train --resume` can use it later."""
    if name := last_checkpoint(store, job.mlflow_run_id):
        for file in store.list(f"{name}/"):
            run_log.file(f"checkpoint/{file.removeprefix(f'{OUTPUT}/checkpoints/')}", store.read(file))
