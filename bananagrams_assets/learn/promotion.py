"""Decide whether a model version becomes champion, and set the aliases `champion` and `previous`."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, NamedTuple

from ..config import Profile
from . import registry
from .comparison import Gain, SampleIoUs, paired_gain
from .tracking import connect


@dataclass(frozen=True)
class Promotion:
    """Result of a decision: whether the champion changed, the reason, and the versions of both aliases."""

    changed: bool
    reason: str
    champion_version: str | None
    previous_version: str | None
    gain: Gain | None = None


def promote(tracking_uri: str, profile: Profile, candidate_version: str | int) -> Promotion:
    """Make the candidate champion if it beats its baselines and the current champion; tag it with the reason.

    Baselines: dev IoU (tag `dev_iou`) must exceed `baseline_iou` and `shuffled_iou` by `checks.min_gain`,
    as in the asset checks. Champion: on the same samples of test (dev if there is no test split), the whole
    95% interval of the mean gain in IoU must be above zero, see `comparison.paired_gain`.
    Raise RegistryError if the version does not exist or lacks these tags.
    """
    client = connect(tracking_uri)
    candidate = registry.get_version(tracking_uri, profile, str(candidate_version))
    champion = registry.find_version(tracking_uri, profile, registry.CHAMPION)
    previous = registry.find_version(tracking_uri, profile, registry.PREVIOUS)
    if champion == str(candidate.version):
        return Promotion(False, f"version {champion} is already the champion", champion, previous)
    registered = profile.mlflow.registered_model
    promoted, reason, gain = _decide(tracking_uri, profile, candidate, champion)
    name = f"version {candidate.version}"
    reason = f"{name} is the champion: {reason}" if promoted else f"{name} stays challenger: {reason}"
    tags = {registry.DECISION: reason}
    if gain:
        tags.update(gain=f"{gain.mean:.4f}", gain_interval=f"{gain.low:.4f} to {gain.high:.4f}")
    for key, value in tags.items():
        client.set_model_version_tag(registered, candidate.version, key, value)
    if not promoted:
        return Promotion(False, reason, champion, previous, gain)
    if champion is not None:
        client.set_registered_model_alias(registered, registry.PREVIOUS, champion)
        previous = champion
    client.set_registered_model_alias(registered, registry.CHAMPION, str(candidate.version))
    return Promotion(True, reason, str(candidate.version), previous, gain)


def restore_previous(tracking_uri: str, profile: Profile) -> Promotion:
    """Swap the aliases `champion` and `previous`, and tag the replaced version as withdrawn.

    `promote` refuses a withdrawn version. Raise RegistryError if there is no previous champion.
    """
    client = connect(tracking_uri)
    name = profile.mlflow.registered_model
    champion = registry.find_version(tracking_uri, profile, registry.CHAMPION)
    previous = registry.find_version(tracking_uri, profile, registry.PREVIOUS)
    if champion is None or previous is None or champion == previous:
        raise registry.RegistryError(
            f"{name} has no previous champion to restore: aliases `champion` {champion or 'none'}, "
            f"`previous` {previous or 'none'}"
        )
    time = datetime.now(timezone.utc).isoformat(timespec="seconds")
    reason = f"version {previous} is the champion again: version {champion} was withdrawn at {time}"
    client.set_model_version_tag(name, champion, registry.WITHDRAWN, time)
    client.set_model_version_tag(name, champion, registry.DECISION, reason)
    client.set_model_version_tag(name, previous, registry.DECISION, reason)
    if registry.WITHDRAWN in registry.get_version(tracking_uri, profile, previous).tags:
        client.delete_model_version_tag(name, previous, registry.WITHDRAWN)
    client.set_registered_model_alias(name, registry.PREVIOUS, champion)
    client.set_registered_model_alias(name, registry.CHAMPION, previous)
    return Promotion(True, reason, previous, champion)


class _Decision(NamedTuple):
    promote: bool
    reason: str
    gain: Gain | None = None


def _decide(tracking_uri: str, profile: Profile, candidate: Any, champion: str | None) -> _Decision:
    """Decide on a candidate (an MLflow `ModelVersion`) against the champion's version, if there is one."""
    try:
        score, baseline, shuffled = (
            float(candidate.tags[key]) for key in ("dev_iou", "baseline_iou", "shuffled_iou")
        )
    except (KeyError, ValueError):
        raise registry.RegistryError(
            f"version {candidate.version} of {profile.mlflow.registered_model} lacks the tags dev_iou, "
            "baseline_iou and shuffled_iou: it was not registered by a training of this project"
        ) from None
    if time := candidate.tags.get(registry.WITHDRAWN):
        return _Decision(False, f"it was withdrawn at {time}; train again, or delete its tag `withdrawn`")
    min_gain = profile.checks.min_gain
    for other, name in ((baseline, "best trivial mask"), (shuffled, "same model, shuffled instructions")):
        if score < other + min_gain:
            return _Decision(False, f"dev IoU {score:.3f}, needed {other:.3f} ({name}) + {min_gain:g}")
    over_trivial = f"dev IoU {score:.3f}, best trivial mask {baseline:.3f}"
    if champion is None:
        return _Decision(True, f"{over_trivial}; there was no champion")
    ious = _comparable_ious(tracking_uri, profile, candidate, champion)
    if ious is None:
        reason = (
            f"the champion, version {champion}, was not scored on these samples; train again to compare, or "
            "delete the alias `champion` if this code cannot load it"
        )
        return _Decision(False, reason)
    candidate_ious, champion_ious = ious
    gain = paired_gain(candidate_ious, champion_ious)
    figures = (
        f"{candidate_ious.split} mean IoU {candidate_ious.mean():.3f}, version {champion} "
        f"{champion_ious.mean():.3f}: gain {gain.mean:+.3f}, 95% interval {gain.low:+.3f} to "
        f"{gain.high:+.3f} over {gain.photos} photographs"
    )
    if gain.low > 0:
        return _Decision(True, f"{figures}; {over_trivial}", gain)
    return _Decision(False, f"{figures}, not above zero", gain)


def _comparable_ious(
    tracking_uri: str, profile: Profile, candidate: Any, champion: str
) -> tuple[SampleIoUs, SampleIoUs] | None:
    """Return the IoUs of candidate and champion on the same samples, or None if there are none."""
    own = registry.read_sample_ious(tracking_uri, candidate.run_id)
    champion_run = registry.get_version(tracking_uri, profile, champion).run_id
    other = registry.read_sample_ious(tracking_uri, champion_run)
    if own is not None and (other is None or other.dataset != own.dataset):
        # The champion was trained on another dataset. The candidate's training then scored it on its own.
        scored = candidate.tags.get("champion_version") == champion
        ious = registry.CHAMPION_IOUS
        other = registry.read_sample_ious(tracking_uri, candidate.run_id, ious) if scored else None
    if own is None or other is None or own.samples.keys() != other.samples.keys():
        return None
    return own, other
