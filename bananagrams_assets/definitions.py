"""The Dagster code location: the graph of `graph.py` as assets, with checks, jobs, a schedule and a sensor.

The environment names the profile (BANANAGRAMS_PROFILE), the store (BANANAGRAMS_STORE) and the MLflow tracking
server (MLFLOW_TRACKING_URI).
"""

import dagster as dg

from .config import Profile
from .defs import automation
from .defs.assets import build_assets
from .defs.checks import build_checks
from .defs.resources import build_resources
from .learn.tracking import default_tracking_uri
from .profiles import default_store, load_profile


def build_definitions(profile: Profile, store_url: str, tracking_uri: str) -> dg.Definitions:
    """Return the definitions of a profile, on a store and an MLflow tracking server."""
    return dg.Definitions(
        assets=build_assets(profile),
        asset_checks=build_checks(profile),
        jobs=automation.JOBS,
        schedules=[automation.nightly_refresh(profile)],
        sensors=[automation.stale_partitions(profile)],
        resources=build_resources(store_url, tracking_uri),
        executor=dg.in_process_executor,
    )


@dg.definitions
def defs() -> dg.Definitions:
    """Return the definitions that the environment names. Dagster calls this when it loads the location."""
    profile = load_profile().profile
    store_url = default_store(profile)
    return build_definitions(profile, store_url, default_tracking_uri(store_url))
