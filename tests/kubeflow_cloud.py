"""A user's folder beside ZenML's server, S3, MLflow on PostgreSQL and the stand-in of Kubeflow."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import yaml

from tests.command import typed
from tests.kfp_containers import Containers
from tests.kfp_process import kfp_environment
from tests.kfp_stand_in import IMAGE, KubeflowStandIn
from tests.pipeline.conftest import TEXTS, configuration, write_text
from tests.servers import BUCKET, mlflow_server, postgres
from tests.storage.server import Server, running_server
from tests.zenml_server import PASSWORD, zenml_server

SECRET = "bipline-zenml"
POOL = {"name": "cpu", "cpus": 2, "memory": "16GiB", "price": 0.1, "operations": 1e10}


@dataclass(frozen=True)
class Cloud:
    """All servers, and a user's folder with a stack and a configuration."""

    mlflow: str
    kubeflow: KubeflowStandIn
    client: dict[str, str]
    folder: Path
    s3: Server

    def configure(self, model: Path, **sections: Any) -> None:
        """Write a configuration of the user's."""
        for seed, name in enumerate(TEXTS, start=1):
            write_text(self.folder / f"{name}.txt", seed)
        settings = configuration(
            model, self.folder, state=None,
            **{"recover": {}, "score": {"criterion": "magnitude"}, "promote": {"name": "remote"},
               **sections},
        )  # fmt: skip
        values = settings.model_dump(mode="json")
        (self.folder / "compress.yaml").write_text(yaml.safe_dump(values))

    def compress(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A run on the stack; what ran before is forgotten by the stand-in."""
        self.kubeflow.attempts.clear()
        return self.bipline("compress", "compress.yaml", "--stack", "cloud", *arguments)

    def bipline(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """What a user types, in a process of its own."""
        return typed(self.folder, self.environment, *arguments)

    @property
    def environment(self) -> dict[str, str]:
        """What a user's process has of the servers."""
        return kfp_environment(
            **self.client, ZENML_CONFIG_PATH=str(self.folder / "zenml"),
            ZENML_ANALYTICS_OPT_IN="false", BIPLINE_MLFLOW_PASSWORD=PASSWORD,
            KFP_STAND_IN=self.kubeflow.address,
        )  # fmt: skip

    def write_stack(self, **orchestrator: object) -> Path:
        where = self.kubeflow.address.removeprefix("http://").partition("/")[0]
        components = {
            "orchestrator": {
                "flavor": "bipline_kubeflow",
                "configuration": {
                    "kubeflow_hostname": self.kubeflow.address, "image": f"{where}/{IMAGE}:1",
                    "secret_env": {SECRET: {name: name for name in self.kubeflow.secrets[SECRET]}},
                    "pools": [POOL], **orchestrator,
                },
            },
            "artifact_store": {
                "flavor": "s3",
                "configuration": {
                    "path": f"s3://{BUCKET}/zenml", "key": "test", "secret": "test",
                    "client_kwargs": {"endpoint_url": kfp_environment()["AWS_ENDPOINT_URL"]},
                },
            },
            "container_registry": {"flavor": "default", "configuration": {"uri": where}},
            "image_builder": {"flavor": "local"},
            "experiment_tracker": {
                "flavor": "mlflow",
                "configuration": {
                    "tracking_uri": self.mlflow, "tracking_username": "team",
                    "tracking_password": "${env:BIPLINE_MLFLOW_PASSWORD}",
                },
            },
        }  # fmt: skip
        path = self.folder / "cloud.yaml"
        path.write_text(yaml.safe_dump({"name": "cloud", "components": components}))
        return path


@contextmanager
def running_cloud(folder: Path, containers: Containers | None = None) -> Iterator[Cloud]:
    """All servers for the length of the block, and the user's stack applied.

    Pods are containers where those are given, and processes otherwise.
    """
    with (
        running_server() as s3,
        postgres(folder / "postgres.log") as database,
        mlflow_server(folder, database, f"s3://{BUCKET}") as mlflow,
        zenml_server(folder / "server") as client,
    ):
        boto3.client("s3").create_bucket(Bucket=BUCKET)
        names = ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY",
                 "AWS_DEFAULT_REGION", "NO_PROXY")  # fmt: skip
        seen = kfp_environment()
        secrets = {SECRET: {**client, **{name: seen[name] for name in names}}}
        stand_in = KubeflowStandIn(folder / "pods", secrets, containers=containers)
        with stand_in.serving() as kubeflow:
            (folder / "user").mkdir()
            found = Cloud(mlflow, kubeflow, client, folder / "user", s3)
            applied = found.bipline("stack", "apply", found.write_stack())
            assert applied.returncode == 0, applied
            yield found
