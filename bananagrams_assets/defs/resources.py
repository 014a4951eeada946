"""Resources of the assets: the store and MLflow."""

import os

import dagster as dg

from ..storage.open_store import open_store
from ..storage.store import Store


class StoreResource(dg.ConfigurableResource):
    """The store of all files: a folder, or a bucket reached through dagster-aws."""

    url: str

    def open(self) -> Store:
        """Open the store. Raises StoreError if it cannot be reached or written."""
        if not self.url.startswith("s3://"):
            return open_store(self.url)
        # Importing dagster-aws takes longer than importing dagster, and only a bucket needs it.
        from dagster_aws.s3 import S3Resource

        return open_store(self.url, S3Resource(endpoint_url=os.environ.get("AWS_ENDPOINT_URL")).get_client())


class MlflowResource(dg.ConfigurableResource):
    """The MLflow tracking server and registry."""

    tracking_uri: str


def build_resources(store_url: str, tracking_uri: str) -> dict[str, object]:
    """Return the resources of the assets by name."""
    return {"store": StoreResource(url=store_url), "mlflow": MlflowResource(tracking_uri=tracking_uri)}
