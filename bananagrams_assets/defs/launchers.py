"""Where a training runs: on this machine, as an Amazon ECS task, as a Ray job. All start one entry."""

import shlex
from collections.abc import Callable
from typing import Any

import dagster as dg

from ..config import LauncherSettings, Profile
from ..learn import launch
from ..learn.launch import LaunchError
from .resources import visible_gpus

TERMINATION_S = 120.0
"""What a training has to write its checkpoint when its Dagster run is terminated."""


def run_training(
    context: dg.AssetExecutionContext, profile: Profile, store_url: str, tracking_uri: str, job: str
) -> None:
    """Train as the job file says, where the profile says; its lines arrive in the run's log meanwhile.

    Raises LaunchError where that place cannot be used, or reports success though no training sent a
    message, and otherwise what the place raises when a training ends in failure.
    """
    kind = profile.launcher.kind
    if kind == "ecs":
        check_within_reach(store_url, tracking_uri)
    completed = LAUNCHERS[kind](context, profile.launcher, profile.train.devices, job)
    messages = [message for message in completed.get_custom_messages() if isinstance(message, dict)]
    if not any("started" in message for message in messages):
        raise LaunchError(
            f"the launcher `{kind}` reports success, but no message of a training came: {_NO_MESSAGE[kind]}"
        )
    if not any("finished" in message for message in messages):
        raise RuntimeError(
            f"the launcher `{kind}` reports success, but the training did not say that it ended"
        )


def check_within_reach(store_url: str, tracking_uri: str) -> None:
    """Raise LaunchError for a store or a tracking server that only this machine can reach."""
    if not store_url.startswith("s3://"):
        raise LaunchError(
            f"launcher.kind ecs: the store {store_url} is a folder of this machine, which a task cannot "
            "reach; set BANANAGRAMS_STORE to s3://bucket/prefix"
        )
    if tracking_uri.startswith("sqlite:"):
        raise LaunchError(
            f"launcher.kind ecs: {tracking_uri} is a file of this machine, which a task cannot reach; set "
            "MLFLOW_TRACKING_URI to a tracking server"
        )


def _subprocess(
    context: dg.AssetExecutionContext, settings: LauncherSettings, devices: int | None, job: str
) -> Any:
    client = dg.PipesSubprocessClient(termination_timeout_seconds=TERMINATION_S)
    with launch.lifeline() as env:
        return client.run(
            context=context, command=launch.command(job, devices or visible_gpus() or 1), env=env
        )


def _ecs(context: dg.AssetExecutionContext, settings: LauncherSettings, devices: int | None, job: str) -> Any:
    # Importing dagster-aws takes longer than dagster itself, and only this launcher needs it.
    import boto3
    from dagster_aws.pipes import PipesECSClient, PipesS3ContextInjector, PipesS3MessageReader

    ecs = settings.ecs
    bucket, s3, client = job.removeprefix("s3://").partition("/")[0], boto3.client("s3"), boto3.client("ecs")
    client.meta.events.register("after-call.ecs.RunTask", _refuse_failures)
    pipes = PipesECSClient(
        client,
        context_injector=PipesS3ContextInjector(bucket=bucket, client=s3),
        message_reader=PipesS3MessageReader(bucket=bucket, client=s3, interval=ecs.poll_s),
    )
    container: dict[str, Any] = {
        "name": ecs.container,
        "command": launch.command(job, devices or ecs.gpus or 1, python="python"),
    }
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
    wait = {"Delay": max(1, round(ecs.poll_s)), "MaxAttempts": 10**9}
    return pipes.run(context=context, run_task_params=request, waiter_config=wait)  # type: ignore[arg-type]


def _ray(context: dg.AssetExecutionContext, settings: LauncherSettings, devices: int | None, job: str) -> Any:
    try:
        from dagster_ray import PipesRayJobClient
        from ray.job_submission import JobSubmissionClient
    except ImportError as error:
        raise LaunchError(
            f"launcher.kind ray needs more packages ({error}): pip install 'bananagrams[ray]'"
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
            "entrypoint": shlex.join(launch.command(job, devices or ray.gpus or 1, python="python")),
            "entrypoint_num_cpus": ray.cpus,
            "entrypoint_num_gpus": ray.gpus,
        },
    )


def _refuse_failures(parsed: dict[str, Any], **others: Any) -> None:
    """ECS answers a task that it cannot place with no task and no error, but with a list of failures."""
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
    "subprocess": "its command is not the training's",
    "ecs": "look at the task's log; its image must hold bananagrams, its role must read and write the bucket",
    "ray": "look at the job's log in Ray's dashboard; its nodes must hold bananagrams",
}
