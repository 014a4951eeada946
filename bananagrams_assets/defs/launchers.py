"""Launch a training on this machine, as an Amazon ECS task or as a Ray job."""

import os
import shlex
import shutil
import subprocess
import warnings
from collections.abc import Callable
from typing import Any

import dagster as dg

from ..config import EcsSettings, LauncherSettings, Profile
from ..learn import launch
from ..learn.launch import LaunchError

TERMINATION_S = 120.0
"""Time for a training to write its checkpoint after its Dagster run was terminated, in seconds."""


def run_training(
    context: dg.AssetExecutionContext, profile: Profile, store_url: str, tracking_uri: str, job: str
) -> None:
    """Run the training of a job file with the profile's launcher; forward its log lines to the run's log.

    Raise LaunchError if the launcher cannot be used, or if it reports success but no training sent a message.
    A failed training raises the launcher's own error.
    """
    kind = profile.launcher.kind
    if kind == "ecs":
        check_remote_access(store_url, tracking_uri)
    with warnings.catch_warnings():
        # Dagster's message reader calls a method of its own that it marks as a preview feature.
        warnings.filterwarnings("ignore", message=".*PipesMessageReader.expected_writer_count")
        completed = LAUNCHERS[kind](context, profile.launcher, profile.train.devices, job)
    messages = [message for message in completed.get_custom_messages() if isinstance(message, dict)]
    if not any("started" in message for message in messages):
        raise LaunchError(
            f"the launcher `{kind}` reports success, but no training sent a message: {_NO_MESSAGE[kind]}"
        )
    if not any("finished" in message for message in messages):
        raise RuntimeError(f"the launcher `{kind}` reports success, but the training sent no final message")


def check_remote_access(store_url: str, tracking_uri: str) -> None:
    """Raise LaunchError if only this machine can access the store or the tracking server."""
    if not store_url.startswith("s3://"):
        raise LaunchError(
            f"launcher.kind ecs: the task cannot access the store {store_url}, a folder of this machine; set "
            "BANANAGRAMS_STORE to s3://bucket/prefix"
        )
    if tracking_uri.startswith("sqlite:"):
        raise LaunchError(
            f"launcher.kind ecs: the task cannot access {tracking_uri}, a file of this machine; set "
            "MLFLOW_TRACKING_URI to a tracking server"
        )


def visible_gpus() -> int:
    """Return the number of GPUs that a training process on this machine sees; 0 without NVIDIA's driver."""
    if (chosen := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return len([device for device in chosen.split(",") if device.strip() not in ("", "-1")])
    if not (program := shutil.which("nvidia-smi")):
        return 0
    listing = subprocess.run(
        [program, "--list-gpus"], capture_output=True, text=True, check=False, timeout=30
    )
    return listing.stdout.count("GPU ") if listing.returncode == 0 else 0


def _subprocess(
    context: dg.AssetExecutionContext, settings: LauncherSettings, devices: int | None, job: str
) -> Any:
    client = dg.PipesSubprocessClient(termination_timeout_seconds=TERMINATION_S)
    with launch.hold_launcher_lock() as env:
        return client.run(
            context=context, command=launch.torchrun_command(job, devices or visible_gpus() or 1), env=env
        )


def _ecs(context: dg.AssetExecutionContext, settings: LauncherSettings, devices: int | None, job: str) -> Any:
    # Only this launcher needs dagster-aws, and its import takes longer than that of dagster.
    import boto3
    from dagster_aws.pipes import PipesECSClient, PipesS3ContextInjector, PipesS3MessageReader

    ecs = settings.ecs
    bucket, s3, client = job.removeprefix("s3://").partition("/")[0], boto3.client("s3"), boto3.client("ecs")
    client.meta.events.register("after-call.ecs.RunTask", _raise_placement_failures)
    pipes = PipesECSClient(
        client,
        context_injector=PipesS3ContextInjector(bucket=bucket, client=s3),
        message_reader=PipesS3MessageReader(bucket=bucket, client=s3, interval=ecs.poll_s),
    )
    request = _ecs_request(ecs, launch.torchrun_command(job, devices or ecs.gpus or 1, python="python"))
    wait = {"Delay": max(1, round(ecs.poll_s)), "MaxAttempts": 10**9}
    return pipes.run(context=context, run_task_params=request, waiter_config=wait)  # type: ignore[arg-type]


def _ecs_request(ecs: EcsSettings, command: list[str]) -> dict[str, Any]:
    """Return the parameters of ECS RunTask."""
    container: dict[str, Any] = {"name": ecs.container, "command": command}
    task: dict[str, Any] = {"containerOverrides": [container]}
    if ecs.gpus:
        container["resourceRequirements"] = [{"type": "GPU", "value": str(ecs.gpus)}]
    if ecs.cpu is not None:
        container["cpu"], task["cpu"] = ecs.cpu, str(ecs.cpu)
    if ecs.memory_mib is not None:
        container["memory"], task["memory"] = ecs.memory_mib, str(ecs.memory_mib)
    request: dict[str, Any] = {
        "cluster": ecs.cluster,
        "taskDefinition": ecs.task_definition,
        "launchType": ecs.launch_type,
        "overrides": task,
    }
    if ecs.subnets:
        network = {"subnets": list(ecs.subnets), "securityGroups": list(ecs.security_groups)}
        request["networkConfiguration"] = {"awsvpcConfiguration": network}
    return request


def _ray(context: dg.AssetExecutionContext, settings: LauncherSettings, devices: int | None, job: str) -> Any:
    try:
        from dagster_ray import PipesRayJobClient
        from ray.job_submission import JobSubmissionClient
    except ImportError as error:
        raise LaunchError(
            f"launcher.kind ray needs additional packages ({error}): pip install -e '.[ray]' in the checkout"
        ) from None
    ray = settings.ray
    try:
        JobSubmissionClient(ray.address)
    except (ConnectionError, RuntimeError) as error:
        raise LaunchError(f"launcher.ray.address {ray.address}: {' '.join(str(error).split())}") from None
    pipes = PipesRayJobClient(address=ray.address, poll_interval=ray.poll_s)
    return pipes.run(
        context=context,
        submit_job_params={
            "entrypoint": shlex.join(launch.torchrun_command(job, devices or ray.gpus or 1, python="python")),
            "entrypoint_num_cpus": ray.cpus,
            "entrypoint_num_gpus": ray.gpus,
        },
    )


def _raise_placement_failures(parsed: dict[str, Any], **event: Any) -> None:
    """Raise RuntimeError if ECS placed no task; its response then has `failures` and is no error."""
    if parsed.get("failures") and not parsed.get("tasks"):
        reasons = {
            f"{failure.get('reason')} {failure.get('detail') or ''}".strip() for failure in parsed["failures"]
        }
        raise RuntimeError(f"ECS started no task: {'; '.join(sorted(reasons))}")


LAUNCHERS: dict[str, Callable[[dg.AssetExecutionContext, LauncherSettings, int | None, str], Any]] = {
    "subprocess": _subprocess,
    "ecs": _ecs,
    "ray": _ray,
}
_NO_MESSAGE = {
    "subprocess": "its command did not start the training",
    "ecs": "see the task's log; its image must contain bananagrams, its role must read and write the bucket",
    "ray": "see the job's log in the Ray dashboard; bananagrams must be installed on the nodes",
}
