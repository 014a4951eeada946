"""The launchers: their requests to ECS and Ray, and their errors."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import dagster as dg
import pytest
from moto import mock_aws
from moto.ec2.utils import generate_instance_identity_document
from moto.moto_api import state_manager

from bananagrams_assets.config import Profile
from bananagrams_assets.defs import launchers
from bananagrams_assets.learn import job_file, launch, registry, tracking
from bananagrams_assets.learn.launch import LaunchError

from ..learn.tiny import make_dataset, profile
from .server import free_port

JOB = "s3://data/pico/mask_model/jobs/0123.json"
MASK_MODEL_SETTINGS = ("model", "train", "launcher", "mlflow")


def launch_training(
    settings: Profile, store: str = "s3://data/pico", tracking: str = "http://mlflow:5000", job: str = JOB
) -> list[str]:
    """Call `run_training` from an asset, as `mask_model` does; return the run's log or raise its error."""
    errors: list[BaseException] = []

    @dg.asset
    def probe(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
        try:
            launchers.run_training(context, settings, store, tracking, job)
        except Exception as error:
            errors.append(error)
            raise
        return dg.MaterializeResult()

    with dg.DagsterInstance.ephemeral() as instance:
        result = dg.materialize([probe], instance=instance, raise_on_error=False)
        if errors:
            raise errors[0]
        assert result.success
        records = instance.get_records_for_run(result.run_id).records
        return [record.event_log_entry.user_message for record in records]


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Mock an ECS cluster of one 4-GPU machine, a task definition and a bucket; yield the ECS client."""
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with mock_aws():
        boto3.client("s3").create_bucket(Bucket="data")
        image = boto3.client("ec2").describe_images()["Images"][0]["ImageId"]
        machine = boto3.resource("ec2").create_instances(ImageId=image, MinCount=1, MaxCount=1)[0]
        client = boto3.client("ecs")
        client.create_cluster(clusterName="gpus")
        client.register_container_instance(
            cluster="gpus", instanceIdentityDocument=json.dumps(generate_instance_identity_document(machine))
        )
        client.register_task_definition(
            family="trainer",
            containerDefinitions=[
                {"name": name, "image": "bananagrams", "cpu": 256, "memory": 400} for name in ("main", "log")
            ],
        )
        state_manager.set_transition("ecs::task", transition={"progression": "manual", "times": 1})
        yield client
        state_manager.unset_transition("ecs::task")


def ecs(**settings: Any) -> Profile:
    values = {"cluster": "gpus", "task_definition": "trainer", "container": "main", "poll_s": 0.2, **settings}
    return profile(launcher__kind="ecs", **{f"launcher__ecs__{key}": value for key, value in values.items()})


def test_an_ecs_request_has_all_settings_and_a_task_without_messages_fails(aws: Any) -> None:
    """moto runs nothing and reports success, like a wrong image or command."""
    with pytest.raises(LaunchError, match=r"success, but no training sent a message: .*image"):
        launch_training(ecs(cpu=512, memory_mib=600, gpus=2))
    tasks = aws.list_tasks(cluster="gpus", desiredStatus="STOPPED")["taskArns"]
    tasks += aws.list_tasks(cluster="gpus")["taskArns"]
    task = aws.describe_tasks(cluster="gpus", tasks=tasks, include=["TAGS"])["tasks"][0]
    assert task["launchType"] == "EC2"
    overrides = task["overrides"]
    assert (overrides["cpu"], overrides["memory"]) == ("512", "600")
    by_name = {container["name"]: container for container in overrides["containerOverrides"]}
    main = by_name["main"]
    assert (main["cpu"], main["memory"]) == (512, 600)
    assert main["resourceRequirements"] == [{"type": "GPU", "value": "2"}]
    assert main["command"] == launch.torchrun_command(JOB, 2, python="python")
    assert main["command"][:3] == ["python", "-m", "torch.distributed.run"]
    names = {variable["name"] for variable in main["environment"]}
    assert {"DAGSTER_PIPES_CONTEXT", "DAGSTER_PIPES_MESSAGES"} <= names
    assert "command" not in by_name["log"]
    assert any(tag["key"] == "dagster/run-id" for tag in task["tags"])


@pytest.mark.slow
def test_an_ecs_task_without_gpus_requests_none_and_has_its_network(
    aws: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests: list[dict[str, Any]] = []
    real = boto3.client

    def recording(name: str) -> Any:
        client = real(name)
        client.meta.events.register(
            "provide-client-params.ecs.RunTask", lambda params, **_: requests.append(dict(params))
        )
        return client

    monkeypatch.setattr(boto3, "client", recording)
    subnet = boto3.resource("ec2").create_vpc(CidrBlock="10.0.0.0/16").create_subnet(CidrBlock="10.0.0.0/24")
    settings = ecs(gpus=0, launch_type="FARGATE", subnets=(subnet.id,), security_groups=("sg-1",))
    with pytest.raises(LaunchError, match="no training sent a message"):
        launch_training(settings)
    request = requests[0]
    assert request["launchType"] == "FARGATE"
    network = request["networkConfiguration"]["awsvpcConfiguration"]
    assert network == {"subnets": [subnet.id], "securityGroups": ["sg-1"]}
    main = request["overrides"]["containerOverrides"][0]
    assert not {"resourceRequirements", "cpu", "memory"} & main.keys()


def test_a_task_that_ecs_cannot_place_raises_the_reason() -> None:
    failures = [{"arn": "x", "reason": "RESOURCE:GPU"}]
    with pytest.raises(RuntimeError, match="ECS started no task: RESOURCE:GPU"):
        launchers._raise_placement_failures({"tasks": [], "failures": failures})
    launchers._raise_placement_failures({"tasks": [{}], "failures": []})


def test_an_ecs_task_with_local_store_or_tracking_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match="BANANAGRAMS_STORE to s3://"):
        launch_training(ecs(), store=str(tmp_path))
    with pytest.raises(LaunchError, match="MLFLOW_TRACKING_URI"):
        launch_training(ecs(), tracking=f"sqlite:///{tmp_path}/mlflow.db")


def test_an_ecs_task_sends_its_messages_through_the_bucket(aws: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Connect both ends of Pipes over S3: the launcher's environment and `open_pipes` of the training."""
    lines: list[Any] = []

    @dg.asset
    def probe(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
        from dagster_aws.pipes import PipesS3ContextInjector, PipesS3MessageReader

        s3 = boto3.client("s3")
        with dg.open_pipes_session(
            context=context,
            context_injector=PipesS3ContextInjector(bucket="data", client=s3),
            message_reader=PipesS3MessageReader(bucket="data", client=s3, interval=0.1),
        ) as session:
            for name, value in session.get_bootstrap_env_vars().items():
                monkeypatch.setenv(name, value)
            with launch.open_pipes() as pipes:
                pipes.report_custom_message({"started": "0123"})
        lines.extend(session.get_custom_messages())
        return dg.MaterializeResult()

    assert dg.materialize([probe]).success
    assert lines == [{"started": "0123"}]


def test_the_ray_launcher_names_its_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dagster_ray", None)
    with pytest.raises(LaunchError, match=r"pip install -e '\.\[ray\]'"):
        launch_training(profile(launcher__kind="ray"))


def test_a_successful_command_that_sends_no_message_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(launch, "torchrun_command", lambda job, processes: [sys.executable, "-c", ""])
    with pytest.raises(LaunchError, match="no training sent a message"):
        launch_training(profile(), store=str(tmp_path))


def make_job(folder: Path, settings: Profile) -> tuple[str, str]:
    """Build a dataset, start an MLflow run and write a job file; return the job file and the tracking URI."""
    make_dataset(folder)
    uri = tracking.default_tracking_uri(str(folder))
    run_id, _ = tracking.start_run(uri, settings, {})
    name = str(folder / job_file.job_name(run_id))
    job = job_file.TrainingJob(settings, settings.model_dump(mode="json"), str(folder), uri, run_id, None, {})
    job_file.write_job(name, job, MASK_MODEL_SETTINGS)
    return name, uri


@pytest.fixture
def ray_cluster(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start a Ray head in its own process group; yield the URL of its dashboard."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    program = shutil.which("ray", path=path)
    if program is None:
        pytest.skip("ray is not installed")
    root = Path(launch.__file__).parents[2]
    environment = {
        **os.environ, "PATH": path, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_raylet_start_wait_time_s": "120",
    }  # fmt: skip
    dashboard = free_port()
    command = [
        program, "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={free_port()}",
        "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", "--num-cpus=1", "--num-gpus=0",
        f"--dashboard-agent-listen-port={free_port()}", "--disable-usage-stats",
        "--object-store-memory=100000000",
    ]  # fmt: skip
    log = tmp_path_factory.mktemp("ray") / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env=environment, start_new_session=True
        )
    try:
        address = f"http://127.0.0.1:{dashboard}"
        wait_for_ray(address, process, log)
        yield address
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()


def wait_for_ray(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    from ray.job_submission import JobSubmissionClient

    for _ in range(240):
        assert process.poll() is None, log.read_text()[-3000:]
        try:
            JobSubmissionClient(address).list_jobs()
            return
        except Exception:  # a starting dashboard raises errors of many types
            time.sleep(0.5)
    raise AssertionError(log.read_text()[-3000:])


@pytest.mark.slow
def test_a_ray_job_trains_and_its_log_lines_reach_the_run(ray_cluster: str, tmp_path: Path) -> None:
    settings = profile(launcher__kind="ray", launcher__ray__address=ray_cluster, launcher__ray__gpus=0)
    job, uri = make_job(tmp_path, settings)
    lines = launch_training(settings, str(tmp_path), uri, job)
    assert any("step 4/4 loss" in line and "dev mean IoU" in line for line in lines)
    assert any("/checkpoints/" in line for line in lines)
    assert (tmp_path / "mask_model" / "model.json").is_file()
    assert registry.find_version(uri, settings, "challenger") == "1"


@pytest.mark.slow
def test_an_unreachable_ray_cluster_raises_one_line() -> None:
    with pytest.raises(LaunchError, match=r"launcher\.ray\.address http://127\.0\.0\.1:9: "):
        launch_training(profile(launcher__kind="ray", launcher__ray__address="http://127.0.0.1:9"))
