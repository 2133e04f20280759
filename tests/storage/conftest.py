"""A tiny model and a store, each on the disk and behind ``s3://``, and the command to run."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import boto3
import pytest

from bipline.model.opening import open_checkpoint
from bipline.model.writer import TensorSpec, write_weights
from bipline.storage import s3
from bipline.storage.directory import DirectoryWriter
from tests.command import Outcome, run
from tests.storage.server import Server, running_server
from tests.storage.stores import BUCKET as STORES
from tests.storage.stores import Case
from tests.tiny import tiny_model

BUCKET = "models"
MODEL = f"s3://{BUCKET}/tiny/llama"
SHARD_BYTES = 40_000


class Command(Protocol):
    """``bipline`` with its logs and downloads in the test's folder."""

    def __call__(self, *arguments: str | Path) -> Outcome: ...


@pytest.fixture(scope="module")
def serving() -> Iterator[Server]:
    """A running server with the variables that lead to it."""
    with running_server() as server:
        yield server


@pytest.fixture(scope="session")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model in several shards, on the disk."""
    folder = tmp_path_factory.mktemp("s3")
    whole = tiny_model(folder / "whole", "llama-gqa")
    sharded = folder / "sharded"
    shutil.copytree(whole, sharded, ignore=shutil.ignore_patterns("*.safetensors"))
    checkpoint = open_checkpoint(whole)
    write_weights(
        DirectoryWriter(sharded, "model"),
        [TensorSpec(name, *checkpoint.tensor_header(name)) for name in checkpoint.tensors],
        lambda names: checkpoint.stream((name, None) for name in names),
        SHARD_BYTES,
    )
    assert len(list(sharded.glob("*.safetensors"))) > 2
    return sharded


@pytest.fixture(scope="module")
def uploaded(serving: Server, local: Path) -> None:
    """The tiny model behind S3."""
    client = boto3.client("s3")
    client.create_bucket(Bucket=BUCKET)
    for path in local.iterdir():
        client.upload_file(str(path), BUCKET, f"tiny/llama/{path.name}")
    # Neighbours that do not belong to the model: below it, and of a longer name.
    for key in ("tiny/llama/below/config.json", "tiny/llama-2/config.json", "tiny/llama/"):
        client.put_object(Bucket=BUCKET, Key=key, Body=b"not part of it")


@pytest.fixture
def server(serving: Server) -> Iterator[Server]:
    """The server, well behaved and with an empty list before every test."""
    serving.behave()
    yield serving
    serving.behave()


@pytest.fixture
def put(server: Server) -> Callable[[str, bytes], s3.S3File]:
    """Put an object and open it."""

    def put(name: str, content: bytes) -> s3.S3File:
        boto3.client("s3").put_object(Bucket=BUCKET, Key=f"objects/{name}", Body=content)
        opened = s3.S3Folder(f"s3://{BUCKET}/objects").open(name)
        assert isinstance(opened, s3.S3File)
        server.asked.clear()
        return opened

    return put


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    def call(name: str | Path, *arguments: str | Path) -> Outcome:
        return run(capfd, name, *arguments, "--state", tmp_path / "state")

    return call


@pytest.fixture(scope="module")
def bucket(serving: Server) -> str:
    """An empty bucket for stores."""
    boto3.client("s3").create_bucket(Bucket=STORES)
    return STORES


@pytest.fixture(params=["local", "s3"])
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    """A new place for stores, of either kind."""
    if request.param == "local":
        return Case(str(tmp_path / "store"), tmp_path)
    bucket = request.getfixturevalue("bucket")
    return Case(f"s3://{bucket}/{uuid.uuid4().hex}/deep", tmp_path)


@pytest.fixture
def place(bucket: str, tmp_path: Path) -> Case:
    """A new place for stores behind S3."""
    return Case(f"s3://{bucket}/{tmp_path.name}", tmp_path)


def read(file: s3.S3File, offset: int, length: int) -> bytes:
    """A range of an opened object."""
    buffer = bytearray(length)
    file.read_into(memoryview(buffer), offset)
    return bytes(buffer)
