"""Registries under test: the same registered model in MLflow, in S3, in SageMaker and on the hub.

A world makes a registered model of its own for every test, with four versions that nobody is
served. Packages are a few documents that a gate can judge.
"""

from __future__ import annotations

import json
import os
import re
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import boto3
from moto.backends import get_backend
from moto.core import DEFAULT_ACCOUNT_ID

from bipline.delivery.registries.addresses import open_place
from bipline.delivery.registries.journal_mlflow import MlflowRegistry
from bipline.delivery.registries.ledger import LedgerRegistry
from bipline.delivery.registries.mlflow import track_and_register
from bipline.delivery.registries.mlflow_run import RunContent
from bipline.delivery.registries.mlflow_service import prepare_experiment, prepare_tracking
from bipline.storage.directory import atomic_directory
from bipline.storage.manifest import read_manifest
from tests.gated import documents
from tests.hub_writing import WritingHub, writing_hub
from tests.mlflow_tracked import tracked_at
from tests.servers import object_of, team_servers
from tests.storage.server import Server, running_server

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
BUCKET, OWNER, NUMBERS = "registry", "acme", "1234"


def make_package(folder: Path, number: str) -> Path:
    """A package of a few documents: the higher its number, the fewer parameters."""
    package = folder / number
    with atomic_directory(package, "package") as writer:
        values = documents(parameters=700 - int(number))
        writer.info = values.pop("manifest")
        for name, value in values.items():
            (writer.path / name).write_text(json.dumps(value))
        (writer.path / "README.md").write_text(f"# {number}\n")
        (writer.path / "hf").mkdir()
        (writer.path / "hf" / "model.safetensors").write_bytes(bytes([int(number)]) * 100)
    (package / "lineage").mkdir()
    (package / "lineage" / "run.json").write_text("{}")
    return package


class World(ABC):
    """One kind of registry, running."""

    def __init__(self, packages: list[Path]) -> None:
        self.packages = packages

    @abstractmethod
    def begun(self) -> Any:
        """A new registered model with four versions, of which the last is the candidate."""

    @abstractmethod
    def opened(self, registry: Any) -> Any:
        """The same registered model, as another process has it."""

    @abstractmethod
    def damage(self, registry: Any, number: str) -> Any:
        """Change a byte of a stored file; gives what puts it back."""

    @abstractmethod
    def delete_entry(self, registry: Any, number: int) -> None:
        """Remove an entry of the journal, as somebody may by hand."""

    @contextmanager
    def damaged(self, registry: Any, number: str) -> Iterator[None]:
        """A version whose stored copy differs, for the length of the block."""
        restore = self.damage(registry, number)
        try:
            yield
        finally:
            restore()


class MlflowWorld(World):
    """MLflow on a database in a file, or a server over PostgreSQL whose artifacts lie in S3."""

    def __init__(self, packages: list[Path]) -> None:
        import mlflow

        super().__init__(packages)
        for package in packages:
            track_and_register(
                package=package, package_digest=read_manifest(package).digest, name="stored",
                alias="candidate", content=RunContent(),
            )  # fmt: skip
        client = mlflow.MlflowClient()
        self._stored = [client.get_model_version("stored", number) for number in NUMBERS]

    def begun(self) -> MlflowRegistry:
        import mlflow

        client, name = mlflow.MlflowClient(), f"tiny-{uuid.uuid4().hex}"
        client.create_registered_model(name)
        for each in self._stored:
            client.create_model_version(
                name, each.source, run_id=each.run_id, tags=dict(each.tags),
                model_id=each.source.removeprefix("models:/"),
            )  # fmt: skip
        client.set_registered_model_alias(name, "candidate", "4")
        return MlflowRegistry(name)

    def opened(self, registry: MlflowRegistry) -> MlflowRegistry:
        return MlflowRegistry(registry.name)

    def damage(self, registry: MlflowRegistry, number: str) -> Any:
        stored = object_of(registry.find(number).location, "README.md")
        whole = stored.read()
        stored.write(b"# 0\n")
        return lambda: stored.write(whole)

    def delete_entry(self, registry: MlflowRegistry, number: int) -> None:
        import mlflow

        mlflow.MlflowClient().delete_model_version(f"{registry.name}.promotions", str(number))


class PlaceWorld(World):
    """What all places for files share: a model is put once, and copied for every test."""

    address: str

    def __init__(self, packages: list[Path]) -> None:
        super().__init__(packages)
        self.make("stored")
        stored = open_place("stored", self.address)
        for package in packages:
            stored.put(package)

    def begun(self) -> LedgerRegistry:
        name = f"tiny-{uuid.uuid4().hex[:12]}"
        self.make(name)
        self.copy("stored", name)
        return open_place(name, self.address)

    def opened(self, registry: LedgerRegistry) -> LedgerRegistry:
        return open_place(registry.name, self.address)

    def make(self, name: str) -> None:
        """What must be there before a model can be put under a name."""

    @abstractmethod
    def copy(self, name: str, other: str) -> None:
        """Copy a registered model."""

    @property
    @abstractmethod
    def server(self) -> Any:
        """What is asked, and can misbehave."""


class S3World(PlaceWorld):
    """S3: moto's server."""

    address = f"s3://{BUCKET}/models"

    def __init__(self, packages: list[Path], server: Server) -> None:
        self._server = server
        super().__init__(packages)

    @property
    def server(self) -> Server:
        return self._server

    def copy(self, name: str, other: str) -> None:
        backend = get_backend("s3")[DEFAULT_ACCOUNT_ID]["aws"]
        for key, each in list(backend.get_bucket(BUCKET).keys.items()):
            if key.startswith(f"models/{name}/"):
                copied = key.replace(f"/{name}/", f"/{other}/", 1)
                backend.copy_object(each, BUCKET, copied, None, None, None)

    def damage(self, registry: LedgerRegistry, number: str) -> Any:
        key = f"models/{registry.name}/{registry.find(number).location}/hf/model.safetensors"
        stored = boto3.resource("s3").Object(BUCKET, key)
        whole = stored.get()["Body"].read()
        stored.put(Body=bytes([whole[0] ^ 1]) + whole[1:])
        return lambda: stored.put(Body=whole)

    def delete_entry(self, registry: LedgerRegistry, number: int) -> None:
        key = f"models/{registry.name}/promotions/{number:08}.json"
        boto3.resource("s3").Object(BUCKET, key).delete()


class SageMakerWorld(S3World):
    """SageMaker's registry, with its files in S3: moto's server for both."""

    address = f"sagemaker://{BUCKET}/models"

    def make(self, name: str) -> None:
        boto3.client("sagemaker").create_model_package_group(ModelPackageGroupName=name)

    def copy(self, name: str, other: str) -> None:
        super().copy(name, other)
        registry: Any = open_place(other, self.address)
        for package in self.packages:
            digest = read_manifest(package).digest
            registry._create(f"s3://{BUCKET}/models/{other}/packages/{digest[:32]}/hf/", digest)


class HubWorld(PlaceWorld):
    """The hub: a stand-in."""

    address = f"hf:{OWNER}"

    def __init__(self, packages: list[Path], server: WritingHub) -> None:
        self._server = server
        super().__init__(packages)

    @property
    def server(self) -> WritingHub:
        return self._server

    def make(self, name: str) -> None:
        if name == "stored":
            self._server.make(f"{OWNER}/{name}")

    def copy(self, name: str, other: str) -> None:
        self._server.copy(f"{OWNER}/{name}", f"{OWNER}/{other}")

    def damage(self, registry: LedgerRegistry, number: str) -> Any:
        whole = (self.packages[int(number) - 1] / "hf" / "model.safetensors").read_bytes()
        file = (f"{OWNER}/{registry.name}", "hf/model.safetensors")
        self._server.served[file] = bytes([whole[0] ^ 1]) + whole[1:]
        return lambda: self._server.served.pop(file)

    def delete_entry(self, registry: LedgerRegistry, number: int) -> None:
        name = f"{OWNER}/{registry.name}"
        removed = {"path": f"registry/promotions/{number:08}.json"}
        header = {"key": "header", "value": {"summary": "by hand"}}
        assert self._server.commit(
            name, "main", [header, {"key": "deletedFile", "value": removed}]
        )[0] == 200  # fmt: skip


@contextmanager
def running_world(kind: str, folder: Path) -> Iterator[World]:
    """A registry of a kind, with what leads to it in the environment."""
    (folder / "packages").mkdir()
    packages = [make_package(folder / "packages", number) for number in NUMBERS]
    with ExitStack() as stack:
        if kind.startswith("mlflow"):
            if kind == "mlflow server":
                address = stack.enter_context(team_servers(folder))
                prepare_experiment(address, "compress")
            else:
                address = prepare_tracking(folder, "compress")
            stack.enter_context(tracked_at(address, "compress"))
            world: World = MlflowWorld(packages)
        elif kind == "hub":
            world = HubWorld(packages, stack.enter_context(writing_hub(folder / "hub")))
        else:
            server = stack.enter_context(running_server())
            boto3.client("s3").create_bucket(Bucket=BUCKET)
            world = (SageMakerWorld if kind == "sagemaker" else S3World)(packages, server)
        yield world


def plain(text: str) -> str:
    """A text without the name that a test's model was given."""
    return re.sub(r"tiny-[0-9a-f]+", "tiny", text)
