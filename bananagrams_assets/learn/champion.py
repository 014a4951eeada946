"""The `champion` stage: decide which registered version the alias `champion` names."""

from __future__ import annotations

from typing import Any

from ..stages.receipts import read_receipt
from ..stages.stage import UNPARTITIONED, StageResult, StageRun


def choose_champion(run: StageRun, tracking_uri: str, back: bool = False) -> StageResult:
    """Compare the newest model with the champion and move the alias if the new model is better.

    With `back` the previous champion becomes champion again. Raises RegistryError.
    """
    from . import promotion

    if back:
        decision = promotion.restore_previous(tracking_uri, run.settings)
    else:
        receipt = read_receipt(run.store, "mask_model", UNPARTITIONED)
        assert receipt is not None  # build_partition raises UpstreamMissing without it
        decision = promotion.promote(tracking_uri, run.settings, receipt.stats["model_version"])
    run.log(decision.reason)
    stats: dict[str, Any] = {
        "moved": decision.changed,
        "reason": decision.reason,
        "champion_version": str(decision.champion_version or "none"),
        "previous_version": str(decision.previous_version or "none"),
    }
    if decision.gain:
        stats["gain"] = decision.gain.mean
        stats["gain_interval"] = f"{decision.gain.low:+.4f} to {decision.gain.high:+.4f}"
        stats["photographs_compared"] = decision.gain.photos
    return StageResult({}, stats, content=f"version-{decision.champion_version or 'none'}")
