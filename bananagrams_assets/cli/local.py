"""Materialize assets on this machine: the same assets, jobs and Dagster instance as `dagster dev` uses."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import lru_cache
from multiprocessing import active_children, get_context
from pathlib import Path

import dagster as dg

from ..config import Profile
from ..definitions import build_definitions
from ..defs.automation import build_shard, choose_champion, index_split, refresh_manifest, train_model
from ..errors import BananagramsError
from ..graph import IMAGE_PAIRS, MANIFEST, MASK_MODEL, SHARD_STAGES, SPLIT_INDEX
from ..learn.tracking import default_tracking_uri
from ..profiles import default_store, home_folder
from ..stages.stage import UNPARTITIONED
from ..stages.staleness import Stale, stale_partitions, why_stale
from ..stages.status import retryable_failures
from ..storage.open_store import open_store
from ..storage.store import Store

Report = Callable[[str], None]
GRACE_S = 1.0
"""Time that all workers of a cancelled build together have to exit, in seconds. Finished stages are kept."""

_INSTANCE_SETTINGS = """\
# Written on first use. You may change it. See https://docs.dagster.io/deployment/oss/dagster-yaml
telemetry:
  enabled: false
nux:
  enabled: false
concurrency:
  pools:
    granularity: op
    default_limit: 4
  runs:
    max_concurrent_runs: {runs}
"""


class RunFailed(BananagramsError, RuntimeError):
    """A Dagster run failed. The message is the cause."""


def prepare_home(home: Path) -> Path:
    """Create the DAGSTER_HOME `home` with instance settings if it has none; return it. Raises RunFailed."""
    settings = home / "dagster.yaml"
    if settings.exists():
        return home
    try:
        home.mkdir(parents=True, exist_ok=True)
        settings.write_text(_INSTANCE_SETTINGS.format(runs=max(2, os.cpu_count() or 2)), encoding="utf-8")
    except OSError as error:
        raise RunFailed(f"DAGSTER_HOME {home} cannot be written: {error.strerror or error}") from None
    return home


def run_job(
    profile: Profile,
    name: str,
    partition: str | None = None,
    config: Mapping[str, Mapping[str, object]] | None = None,
) -> str:
    """Execute one job in this process, recorded on the instance of DAGSTER_HOME; return the run's id.

    `config` is the run configuration by asset. Raises RunFailed with the first cause.
    """
    with dg.DagsterInstance.from_config(str(prepare_home(home_folder()))) as instance:
        result = (
            _definitions(profile)
            .resolve_job_def(name)
            .execute_in_process(
                instance=instance,
                partition_key=partition,
                raise_on_error=False,
                run_config={
                    "loggers": {"console": {"config": {"log_level": "CRITICAL"}}},
                    "ops": {asset: {"config": dict(values)} for asset, values in (config or {}).items()},
                },
            )
        )
    if not result.success:
        job = f"{name} {partition}" if partition else name
        raise RunFailed(f"{job}: {next(_causes(result), 'failed; see the run in the Dagster UI')}")
    return result.run_id


@lru_cache(maxsize=1)
def _definitions(profile: Profile) -> dg.Definitions:
    store_url = default_store(profile)
    return build_definitions(profile, store_url, default_tracking_uri(store_url))


def build_dataset(profile: Profile, workers: int, report: Report, retry_failed: bool = False) -> int:
    """Materialize every stale partition from the manifest to the split indexes; return how many.

    With `retry_failed`, shards with retryable failures are fetched again too. Each shard is
    built in its own run, by one of `workers` processes. Raises RunFailed after all shards have ended.
    """
    prepare_home(home_folder())
    store = open_store(default_store(profile))
    done = 0
    if reasons := why_stale(store, profile, MANIFEST, UNPARTITIONED):
        report(f"manifest: {'; '.join(reasons)}")
        run_job(profile, refresh_manifest.name)
        done += 1
    done += _build_shards(store, profile, workers, report, retry_failed)
    for split in SPLIT_INDEX.partitions(profile):
        if why_stale(store, profile, SPLIT_INDEX, split):
            run_job(profile, index_split.name, split)
            report(f"split_index: {split}")
            done += 1
    return done


def train(profile: Profile, rebuild: bool = False, resume: str | None = None) -> None:
    """Materialize the model and the champion. Raises RunFailed."""
    config: dict[str, object] = {"rebuild": rebuild}
    if resume:
        config["resume"] = resume
    run_job(profile, train_model.name, config={MASK_MODEL.name: config})


def restore_previous_champion(profile: Profile) -> None:
    """Materialize the champion with the previous version. Raises RunFailed."""
    run_job(profile, choose_champion.name, config={"champion": {"back": True}})


def _build_shards(store: Store, profile: Profile, workers: int, report: Report, retry_failed: bool) -> int:
    """Build the stale shards; return the number of stale partitions. Raises RunFailed."""
    stale = stale_partitions(store, profile, SHARD_STAGES)
    if retry_failed:
        for shard in profile.shard_keys():
            if retryable_failures(store, shard):
                stale.setdefault((IMAGE_PAIRS.name, shard), ["retryable failures"])
    shards = sorted({shard for _, shard in stale}, key=profile.shard_keys().index)
    failures = []
    outcomes = _run_shards(profile, shards, workers, retry_failed)
    for number, (shard, failure) in enumerate(outcomes, start=1):
        report(f"[{number}/{len(shards)}] {shard}: {failure or _summary(stale, shard)}")
        if failure:
            failures.append(failure)
    if failures:
        raise RunFailed(f"{len(failures)} of {len(shards)} shards failed; the first: {failures[0]}")
    return len(stale)


def _summary(stale: Stale, shard: str) -> str:
    """Return the stale stages of a shard with the reasons that are not about other stale stages."""
    stages = [stage for stage, partition in stale if partition == shard]
    reasons = dict.fromkeys(
        reason for stage in stages for reason in stale[stage, shard] if not reason.endswith(" is stale")
    )
    return f"{', '.join(stages)} ({'; '.join(reasons)})"


def _run_shards(
    profile: Profile, shards: list[str], workers: int, retry_failed: bool
) -> Iterator[tuple[str, str | None]]:
    """Build shards in worker processes; yield (shard, failure or None) as they finish."""
    if not shards:
        return
    # A spawned worker shares no threads, locks or SQLite connections with this process.
    with ProcessPoolExecutor(
        min(workers, len(shards)), get_context("spawn"), initializer=_exit_with, initargs=(os.getpid(),)
    ) as pool:
        futures = {pool.submit(_build_shard, profile, shard, retry_failed): shard for shard in shards}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            # Leaving the block waits for the workers, whose steps Dagster may retry.
            running = active_children()
            for worker in running:
                worker.terminate()
            end = time.monotonic() + GRACE_S
            for worker in running:
                worker.join(max(0.0, end - time.monotonic()))
                worker.kill()
            raise


def _exit_with(parent: int) -> None:
    """Make this worker exit when its parent process, `parent`, has ended."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _build_shard(profile: Profile, shard: str, retry_failed: bool) -> str | None:
    """Build one shard; return the failure, or None."""
    config = {IMAGE_PAIRS.name: {"retry_failed": True}} if retry_failed else None
    try:
        run_job(profile, build_shard.name, shard, config)
    except RunFailed as failure:
        return str(failure)
    return None


def _causes(result: dg.ExecuteInProcessResult) -> Iterator[str]:
    """Yield the causes of a failed run: failed blocking checks, then failed steps."""
    refused = [
        f"{check.check_name} of {check.asset_key.to_user_string()}: {check.description}"
        for check in result.get_asset_check_evaluations()
        if check.blocking and not check.passed
    ]
    if refused:
        yield f"refused by asset checks: {'; '.join(refused)}"
    for event in result.all_events:
        if event.is_step_failure:
            error = event.step_failure_data.error
            data = event.step_failure_data.user_failure_data
            if data and data.description:
                yield data.description
                continue
            while error and error.cause:
                error = error.cause
            if error:
                yield error.message.strip()
