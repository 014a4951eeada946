"""What becomes of a trained network: scores, files in the store, a registered version."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from ..config import ConfigError, Profile
from ..progress import Log
from ..storage import paths
from ..storage.store import Store
from ..vision.images import encode_jpeg, fit
from . import checkpoint, launch, registry, report
from .baselines import mean_mask
from .comparison import score_samples
from .dataset import DatasetError, Split, open_split
from .distributed import Job
from .evaluate import best_threshold, score
from .network import MaskNet
from .predict import CARD, DESCRIPTION, WEIGHTS, Predictor, make_predictor


def publish(
    job: Job,
    store: Store,
    net: MaskNet,
    train_split: Split,
    dev_split: Split,
    facts: Mapping[str, Any],
    run_log: registry.RunLog,
    log: Log,
) -> dict[str, Any]:
    """Score the trained network, write it to the store and register it; returns model.json's content."""
    profile = job.profile
    side_px = profile.train.side_px
    threshold = best_threshold(make_predictor(net, side_px), dev_split)  # chosen on dev, applied to test
    predictor = make_predictor(net, side_px, description={"threshold": threshold})
    mean = mean_mask(train_split)
    scores = {"dev": score(predictor, dev_split, mean)}
    digests = {"train": train_split.digest, "dev": dev_split.digest}
    try:
        with open_split(store, "test") as test_split:
            scores["test"] = score(predictor, test_split, mean)
            digests["test"] = test_split.digest
            run_log.dataset(test_split, store.describe(paths.index_json("test")), "testing")
    except DatasetError as error:
        log(f"not scored on test: {error}")
    for split, found in scores.items():
        figures = {f"{split}_{key}": value for key, value in found["model"].items()}
        figures[f"{split}_shuffled_iou"] = found["shuffled"]
        figures[f"{split}_blind_iou"] = found["blind"]
        figures.update({f"{split}_{key}_mask_iou": value for key, value in found["baselines"].items()})
        run_log.metrics(figures, facts["steps"])
        baselines = ", ".join(f"{key} {value:.3f}" for key, value in found["baselines"].items())
        low, high = found["intervals"]["mean_iou"]
        log(
            f"{split}: mean IoU {found['model']['mean_iou']:.3f} (95% interval {low:.3f} to {high:.3f}), "
            f"overall {found['model']['overall_iou']:.3f} at threshold {threshold:g}; trivial masks "
            f"{baselines}; shuffled instructions {found['shuffled']:.3f}, none {found['blind']:.3f}"
        )
    dev = scores["dev"]
    weights = safetensors.torch.save(checkpoint.weights_of(net))
    summary = {
        "dev_iou": dev["model"]["mean_iou"],
        "baselines": dev["baselines"],
        "shuffled_iou": dev["shuffled"],
        **({"test_iou": scores["test"]["model"]["mean_iou"]} if "test" in scores else {}),
        **facts,
    }
    content: dict[str, Any] = {
        "format": 1,
        **sections(profile),
        "threshold": threshold,
        "sha256": hashlib.sha256(weights).hexdigest(),
        "run_id": job.mlflow_run_id,
        "dataset": digests,
        "summary": summary,
        "metrics": scores,
        "torch": torch.__version__,
    }
    counts = {split: json.loads(store.read(paths.index_json(split))) for split in digests}
    card = report.card(profile, content, counts)
    run_log.file("metrics.json", json.dumps(scores, indent=1).encode())
    run_log.file("card.md", card.encode())
    run_log.file("dev_predictions.png", report.encode_png(report.overlay_sheet(predictor, dev_split)))
    log_checkpoint(store, job, run_log)
    tags = {
        **job.tags,
        "dev_iou": repr(summary["dev_iou"]),
        "baseline_iou": repr(max(dev["baselines"].values())),
        "shuffled_iou": repr(summary["shuffled_iou"]),
        **{f"dataset_{split}": digest for split, digest in digests.items()},
        **compare_with_champion(job, store, predictor, dev_split, run_log, log),
    }
    with tempfile.TemporaryDirectory(prefix="bananagrams-") as name:
        folder = Path(name)
        (folder / WEIGHTS).write_bytes(weights)
        (folder / DESCRIPTION).write_text(json.dumps(content, indent=1), encoding="utf-8")
        (folder / CARD).write_text(card, encoding="utf-8")
        sample = dev_split[0]
        example = encode_jpeg(fit(sample.image, side_px), 90), sample.text
        version = registry.register(job.tracking_uri, profile, job.mlflow_run_id, folder, example, tags, card)
    content["version"] = version
    store.write(f"{job.output}/{WEIGHTS}", weights)
    store.write(f"{job.output}/{DESCRIPTION}", json.dumps(content, indent=1).encode())
    log(f"registered as {profile.mlflow.registered_model} version {version}, alias {registry.CHALLENGER}")
    return content


def compare_with_champion(
    job: Job, store: Store, predictor: Predictor, dev_split: Split, run_log: registry.RunLog, log: Log
) -> dict[str, str]:
    """Log each sample's IoU of this model and of today's champion, for `registry.promote` to compare.

    On test, or on dev where there is no test. Returns tags that name the champion, if there is one.
    """
    try:
        with open_split(store, "test") as test_split:
            return _compare(job, test_split, predictor, run_log, log)
    except DatasetError:
        return _compare(job, dev_split, predictor, run_log, log)


def _compare(
    job: Job, split: Split, predictor: Predictor, run_log: registry.RunLog, log: Log
) -> dict[str, str]:
    own = score_samples(predictor, split)
    run_log.file(registry.SAMPLES, json.dumps(own.as_json()).encode())
    version = registry.find(job.tracking_uri, job.profile, registry.CHAMPION)
    if version is None:
        return {}
    known, _ = registry.scored_samples(job.tracking_uri, job.profile, version)
    if known is None or known.dataset != own.dataset:
        try:
            champion = registry.load(job.tracking_uri, job.profile, version)
        except (registry.RegistryError, checkpoint.CheckpointError, ConfigError, OSError) as error:
            log(f"the champion, version {version}, cannot be scored on {split.name}: {error}")
            return {}
        known = score_samples(champion, split)
        run_log.file(registry.CHAMPION_SAMPLES, json.dumps(known.as_json()).encode())
    log(f"the champion, version {version}, has {split.name} mean IoU {known.mean():.3f} on these samples")
    return {"champion_version": version}


def log_checkpoint(store: Store, job: Job, run_log: registry.RunLog) -> None:
    """Copy the last checkpoint to the run, where `bananagrams train --resume` can be pointed to it later."""
    if name := launch.last_checkpoint(store, job.mlflow_run_id):
        for file in store.list(f"{name}/"):
            with store.local_path(file) as path, tempfile.TemporaryDirectory(prefix="bananagrams-") as folder:
                copy = Path(folder) / file.rpartition("/")[2]
                shutil.copyfile(path, copy)
                run_log.copy(copy, f"checkpoint/{name.rpartition('/')[2]}")


def sections(profile: Profile) -> dict[str, Any]:
    """The parts of the profile that a stored model is rebuilt from."""
    return profile.model_dump(mode="json", include={"model", "train"})
