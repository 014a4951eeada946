"""Materialize on this machine what `dagster dev` would: the same assets, jobs and instance."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import active_children, get_context
from pathlib import Path

import dagster as dg

from ..errors import BananagramsError
from ..stages.stage import SHARD_STAGES, UNPARTITIONED, stale_partitions, why_stale
from ..stages.status import retryable_failures
from ..storage.store import Store
from .partitions import PROFILE

Report = Callable[[str], None]
GRACE_S = 1.0
"""What workers have together to end in good order; a killed one loses nothing that a stage has finished."""

_INSTANCE_SETTINGS = """\
# Written on first use; yours to change. See https://docs.dagster.io/deployment/oss/dagster-yaml
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
    """A run ended in failure; the message is its cause."""


def prepare_home(home: Path) -> None:
    """Make DAGSTER_HOME a folder with instance settings, if it is not one yet. Raises RunFailed."""
    settings = home / "dagster.yaml"
    if settings.exists():
        return
    try:
        home.mkdir(parents=True, exist_ok=True)
        settings.write_text(_INSTANCE_SETTINGS.format(runs=max(2, os.cpu_count() or 2)), encoding="utf-8")
    except OSError as error:
        raise RunFailed(f"DAGSTER_HOME {home} cannot be written: {error.strerror or error}") from None


def run_job(
    name: str, partition: str | None = None, rebuild: dict[str, dict[str, object]] | None = None
) -> str:
    """Execute one job in this process, recorded on the instance of DAGSTER_HOME.

    `rebuild` is run configuration by asset. Returns the run's id. Raises RunFailed with the first cause.
    """
    from ..definitions import defs

    with dg.DagsterInstance.get() as instance:
        result = defs.resolve_job_def(name).execute_in_process(
            instance=instance,
            partition_key=partition,
            raise_on_error=False,
            run_config={
                "loggers": {"console": {"config": {"log_level": "CRITICAL"}}},
                "ops": {asset: {"config": config} for asset, config in (rebuild or {}).items()},
            },
        )
    if not result.success:
        where = f"{name} {partition}" if partition else name
        raise RunFailed(f"{where}: {next(_causes(result), 'failed; see the run in the Dagster UI')}")
    return result.run_id


def build_dataset(store: Store, workers: int, report: Report, retry_failed: bool = False) -> int:
    """Materialize every stale partition from the manifest to the split indexes; returns how many.

    With `retry_failed` shards with failures that may pass are fetched again too. Shards are built by
    `workers` processes, a run each. Raises RunFailed once all have ended.
    """
    done = 0
    if reasons := why_stale(store, PROFILE, "manifest", UNPARTITIONED):
        report(f"manifest: {'; '.join(reasons)}")
        run_job("refresh_manifest")
        done += 1
    stale = stale_partitions(store, PROFILE, SHARD_STAGES)
    if retry_failed:
        for shard in PROFILE.shard_keys():
            if retryable_failures(store, shard):
                stale.setdefault(("image_pairs", shard), ["failures may have passed"])
    shards = sorted({shard for _, shard in stale}, key=PROFILE.shard_keys().index)
    failures = []
    for number, (shard, failure) in enumerate(_each_shard(shards, workers, retry_failed), start=1):
        parts = [asset for asset, partition in stale if partition == shard]
        because = dict.fromkeys(
            reason for asset in parts for reason in stale[asset, shard] if not reason.endswith(" is stale")
        )
        what = failure or f"{', '.join(parts)} ({'; '.join(because)})"
        report(f"[{number}/{len(shards)}] {shard}: {what}")
        done += len(parts)
        if failure:
            failures.append(failure)
    if failures:
        raise RunFailed(f"{len(failures)} of {len(shards)} shards failed; the first: {failures[0]}")
    for split in PROFILE.splits.by_name():
        if why_stale(store, PROFILE, "split_index", split):
            run_job("index_split", split)
            report(f"split_index: {split}")
            done += 1
    return done


def train_model(rebuild: bool = False, resume: str | None = None) -> None:
    """Materialize the model and the champion. Raises RunFailed."""
    train: dict[str, object] = {"rebuild": rebuild}
    if resume:
        train["resume"] = resume
    run_job("train_model", rebuild={"mask_model": train})


def go_back() -> None:
    """Materialize the champion as the one before it. Raises RunFailed."""
    run_job("choose_champion", rebuild={"champion": {"back": True}})


def _each_shard(shards: list[str], workers: int, retry_failed: bool) -> Iterator[tuple[str, str | None]]:
    """(shard, failure or None) as shards finish."""
    if not shards:
        return
    # A spawned worker shares no threads, locks or SQLite connections with this process.
    with ProcessPoolExecutor(
        min(workers, len(shards)), get_context("spawn"), initializer=_end_with, initargs=(os.getpid(),)
    ) as pool:
        futures = {pool.submit(_build_shard, shard, retry_failed): shard for shard in shards}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            # Leaving the block waits for the workers, which Dagster may let try their step again.
            running = active_children()
            for worker in running:
                worker.terminate()
            end = time.monotonic() + GRACE_S  # of all together, however many they are
            for worker in running:
                worker.join(max(0.0, end - time.monotonic()))
                worker.kill()
            raise


def _end_with(parent: int) -> None:
    """End this worker when the command that started it has ended, in whatever way."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _build_shard(shard: str, retry_failed: bool) -> str | None:
    try:
        run_job("build_shard", shard, {"image_pairs": {"retry_failed": True}} if retry_failed else None)
    except RunFailed as failure:
        return str(failure)
    return None


def _causes(result: dg.ExecuteInProcessResult) -> Iterator[str]:
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
