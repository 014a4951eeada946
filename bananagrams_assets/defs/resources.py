"""What assets reach outside of Dagster: the store, MLflow, the training process."""

import os
import shutil
import subprocess

import dagster as dg

from ..learn.launch import default_tracking_uri
from ..profiles import default_store
from ..storage.open_store import open_store
from ..storage.store import Store
from .partitions import PROFILE


class StoreResource(dg.ConfigurableResource):
    """Where every asset keeps its files: a folder, or a bucket reached through dagster-aws."""

    url: str

    def open(self) -> Store:
        """The store; raises StoreError if it cannot be reached or written."""
        if not self.url.startswith("s3://"):
            return open_store(self.url)
        # Importing dagster-aws takes longer than dagster itself, and only a bucket needs it.
        from dagster_aws.s3 import S3Resource

        return open_store(self.url, S3Resource(endpoint_url=os.environ.get("AWS_ENDPOINT_URL")).get_client())


class MlflowResource(dg.ConfigurableResource):
    """The MLflow tracking server and registry."""

    tracking_uri: str


def visible_gpus() -> int:
    """GPUs that a training process started here would see; 0 without NVIDIA's driver."""
    if (chosen := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return len([device for device in chosen.split(",") if device.strip() not in ("", "-1")])
    if not (program := shutil.which("nvidia-smi")):
        return 0
    listing = subprocess.run(
        [program, "--list-gpus"], capture_output=True, text=True, check=False, timeout=30
    )
    return listing.stdout.count("GPU ") if listing.returncode == 0 else 0


STORE_URL = default_store(PROFILE)
RESOURCES = {
    "store": StoreResource(url=STORE_URL),
    "mlflow": MlflowResource(tracking_uri=default_tracking_uri(STORE_URL)),
}
