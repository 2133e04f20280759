"""A model behind ``s3://``: the same model as on the disk, and every fault of the network told.

The server is moto's, in this process on 127.0.0.1; what it was asked for is written down, and it
can be told to break off its answers or to be down.
"""

from __future__ import annotations

import json
import logging
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Protocol

import boto3
import pytest
import torch
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

from bipline.base.errors import EnvironmentFailure, InvalidInput, Refused
from bipline.model.block_loop import BlockLoop
from bipline.model.checkpoint import PIECE_BYTES
from bipline.model.opening import INDEX_FILE, open_checkpoint
from bipline.model.writer import TensorSpec, write_weights
from bipline.storage import s3, s3_client
from bipline.storage.digests import CHUNK_BYTES
from bipline.storage.directory import DirectoryWriter
from bipline.storage.folder import LocalFolder, open_folder
from tests.command import Outcome, contents, run
from tests.compression.test_calibrate import prose
from tests.tiny import tiny_model, token_windows

BUCKET = "models"
MODEL = f"s3://{BUCKET}/tiny/llama"
SHARD_BYTES = 40_000
ATTEMPTS = 2
DOWN = ("503 Service Unavailable", [("Content-Length", "0")])


class Command(Protocol):
    """``bipline`` with its logs and downloads in the test's folder."""

    def __call__(self, *arguments: str | Path) -> Outcome: ...


@dataclass
class Server:
    """moto's WSGI application, what it was asked for, and how it is to behave."""

    application: Callable[..., Iterable[bytes]]
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    # Answers to ranges that still are to break off, after this share of their bytes.
    breaking: int = 0
    share: float = 0.5
    down: bool = False

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        ranged = environ.get("HTTP_RANGE", "")
        self.asked.append((environ["REQUEST_METHOD"], environ["PATH_INFO"], ranged))
        if self.down:
            start(*DOWN)
            return []
        answer = self.application(environ, start)
        if ranged and self.breaking:
            self.breaking -= 1
            whole = b"".join(answer)
            return [whole[: int(len(whole) * self.share)]]
        return answer

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """First and last byte of every range asked for, in their order in the file."""
        asked = [ranged.removeprefix("bytes=").split("-") for _, _, ranged in self.asked if ranged]
        return sorted((int(first), int(last)) for first, last in asked)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


@pytest.fixture(scope="module")
def serving() -> Iterator[Server]:
    """A running server with the variables that lead to it."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    application = Server(DomainDispatcherApplication(create_backend_app))
    listening = make_server("127.0.0.1", 0, application, threaded=True)
    thread = threading.Thread(target=listening.serve_forever, daemon=True)
    thread.start()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3"):
            patch.delenv(name, raising=False)
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{listening.server_port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_CONFIG_FILE", "/nonexistent")
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
        patch.setenv("AWS_MAX_ATTEMPTS", str(ATTEMPTS))
        patch.setenv("NO_PROXY", "127.0.0.1")
        yield application
    listening.shutdown()
    thread.join()
    listening.server_close()


@pytest.fixture(scope="module")
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
def uploaded(serving: Server, local: Path) -> Server:
    client = boto3.client("s3")
    client.create_bucket(Bucket=BUCKET)
    for path in local.iterdir():
        client.upload_file(str(path), BUCKET, f"tiny/llama/{path.name}")
    # Neighbours that do not belong to the model: below it, and of a longer name.
    for key in ("tiny/llama/below/config.json", "tiny/llama-2/config.json", "tiny/llama/"):
        client.put_object(Bucket=BUCKET, Key=key, Body=b"not part of it")
    return serving


@pytest.fixture
def server(uploaded: Server) -> Iterator[Server]:
    """The server, well behaved and with an empty list before every test."""
    uploaded.asked.clear()
    yield uploaded
    uploaded.breaking, uploaded.share, uploaded.down = 0, 0.5, False


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


def read(file: s3.S3File, offset: int, length: int) -> bytes:
    buffer = bytearray(length)
    file.read_into(memoryview(buffer), offset)
    return bytes(buffer)


# -- the same model -----------------------------------------------------------------------------


def test_the_folder_is_the_one_on_the_disk(server: Server, local: Path) -> None:
    remote, on_disk = open_folder(MODEL), LocalFolder(local)
    assert remote.exists()
    assert remote.names() == on_disk.names()
    for name in on_disk.names():
        assert remote.read(name) == on_disk.read(name)
        assert remote.open(name).size == on_disk.open(name).size
    assert open_folder(f"{MODEL}/").names() == on_disk.names()


def test_the_model_is_the_one_on_the_disk(server: Server, local: Path) -> None:
    remote, on_disk = open_checkpoint(MODEL), open_checkpoint(local)
    assert remote.location == MODEL
    assert remote.tensor_digest == on_disk.tensor_digest
    assert remote.layout_digest == on_disk.layout_digest
    assert remote.weight_bytes == on_disk.weight_bytes
    windows = token_windows()
    found = BlockLoop(open_checkpoint(MODEL), torch.float64).logits(windows)
    assert found.equal(BlockLoop(on_disk, torch.float64).logits(windows))


def test_prune_writes_the_same_bytes(
    server: Server, local: Path, command: Command, tmp_path: Path
) -> None:
    """No file of the output names the place its model came from, so all of them are compared."""
    (tmp_path / "text.txt").write_text(prose(1))
    results = []
    for name, model in {"local": str(local), "remote": MODEL}.items():
        outcome = command(
            "prune", model, "--ratio", "0.3", "--calibration", tmp_path / "text.txt",
            "--samples", "4", "--seqlen", "16", "--shard-size", "30000",
            "--criterion", "llm-bip-glu",
            "--out", tmp_path / name / "out", "--statistics", tmp_path / name / "statistics",
            "--json", tmp_path / f"{name}.json",
        )  # fmt: skip
        assert outcome.code == 0, outcome
        results.append(json.loads((tmp_path / f"{name}.json").read_text()))
    written = contents(tmp_path / "remote")
    assert any(name.endswith(INDEX_FILE) for name in written)
    assert written == contents(tmp_path / "local")
    assert not any(BUCKET.encode() in content for content in written.values())
    same = ("digest", "plan_digest", "parameters", "ratio")
    assert [results[0][key] for key in same] == [results[1][key] for key in same]
    assert results[1]["model"] == MODEL


def test_evaluate_gives_the_same_perplexity(
    server: Server, local: Path, command: Command, tmp_path: Path
) -> None:
    (tmp_path / "text.txt").write_text(prose(2))
    outcome = command(
        "evaluate", MODEL, "--baseline", local, "--text", f"prose={tmp_path / 'text.txt'}",
        "--seqlen", "16", "--json", tmp_path / "result.json",
    )  # fmt: skip
    assert outcome.code == 0, outcome
    result = json.loads((tmp_path / "result.json").read_text())
    for key in ("perplexity", "tensor_digest", "parameters", "file_bytes"):
        assert result[key] == result["baseline"][key]
    assert result["perplexity"]["prose"]


def test_speed_and_tasks_need_a_local_model(server: Server, command: Command) -> None:
    words = (MODEL, "needs the model in a local directory")
    command("evaluate", MODEL, "--speed").assert_one_line(2, *words)


# -- what is asked for --------------------------------------------------------------------------


def test_a_tensor_costs_its_own_bytes(server: Server) -> None:
    """One tensor is read from a checkpoint of many: its range is asked for, and nothing else."""
    checkpoint = open_checkpoint(MODEL)
    server.asked.clear()
    for name, stored in checkpoint.tensors.items():
        checkpoint.tensor(name)
        assert server.ranges == [(stored.offset, stored.offset + stored.num_bytes - 1)]
        server.asked.clear()


def test_opening_asks_for_headers_alone(server: Server) -> None:
    checkpoint = open_checkpoint(MODEL)
    asked: dict[str, list[str]] = {name: [] for name in checkpoint.files}
    for _, path, ranged in server.asked:
        if ranged and path.endswith(".safetensors"):
            asked[Path(path).name].append(ranged)
    for name, ranges in asked.items():
        weights = [t.offset for t in checkpoint.tensors.values() if t.file.name == name]
        assert ranges == ["bytes=0-7", f"bytes=8-{min(weights) - 1}"]


def test_a_large_reading_is_several_ranges(
    put: Callable[[str, bytes], s3.S3File], server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They cover what is read, each byte once, and every part lands in its place."""
    content = Random(0).randbytes(10_000)
    file = put("large", content)
    monkeypatch.setattr(s3, "PART_BYTES", 999)
    for offset, length in [(0, 10_000), (1, 9_999), (17, 999), (17, 1000), (9_999, 1), (5, 0)]:
        server.asked.clear()
        assert read(file, offset, length) == content[offset : offset + length]
        assert len(server.ranges) == -(-length // 999)
        covered = [byte for first, last in server.ranges for byte in range(first, last + 1)]
        assert covered == list(range(offset, offset + length))


def test_what_a_checkpoint_reads_at_once_is_read_by_several_connections(
    put: Callable[[str, bytes], s3.S3File], server: Server
) -> None:
    """A stream's piece keeps all connections busy, and a chunk of a tensor several of them."""
    content = Random(0).randbytes(PIECE_BYTES)
    file = put("piece", content)
    assert read(file, 0, PIECE_BYTES) == content
    assert len(server.ranges) >= s3.CONNECTIONS
    server.asked.clear()
    assert read(file, 0, CHUNK_BYTES) == content[:CHUNK_BYTES]
    assert len(server.ranges) > 1


# -- what can go wrong --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("s3://no-such-bucket/tiny/llama", ["no-such-bucket", "no such bucket"]),
        (f"s3://{BUCKET}/tiny/mamba", ["tiny/mamba", "no such model directory"]),
        (f"s3://{BUCKET}", [BUCKET, "no config.json"]),
        ("s3://", ["s3://", "names no bucket"]),
        ("s3:///tiny/llama", ["names no bucket"]),
        ("s3://Not A Bucket!/tiny", ["Not A Bucket!", "Invalid bucket name"]),
    ],
)
def test_a_place_that_is_not_there(
    server: Server, command: Command, tmp_path: Path, location: str, words: list[str]
) -> None:
    boto3.client("s3").put_object(Bucket=BUCKET, Key="readme", Body=b"")
    arguments = ["--ratio", "0.3", "--out", tmp_path / "out"]
    command("prune", location, *arguments).assert_one_line(2, *words)
    assert not (tmp_path / "out").exists()


def test_a_shard_that_is_missing(server: Server, local: Path, command: Command) -> None:
    client = boto3.client("s3")
    shard = sorted(local.glob("*.safetensors"))[1].name
    for path in local.iterdir():
        if path.name != shard:
            client.upload_file(str(path), BUCKET, f"tiny/half/{path.name}")
    place = f"s3://{BUCKET}/tiny/half"
    command("evaluate", place, "--text", "a=b").assert_one_line(2, place, shard, "missing")


def test_an_object_that_is_missing_is_named(server: Server) -> None:
    place = open_folder(MODEL)
    for look in (place.read, place.open):
        with pytest.raises(InvalidInput, match=f"{MODEL}/gone.json: no such object"):
            look("gone.json")


def test_a_port_where_nobody_listens(
    server: Server, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    begin = time.monotonic()
    command("evaluate", MODEL, "--text", "a=b").assert_one_line(3, MODEL, "does not answer")
    assert time.monotonic() - begin < 10
    assert server.asked == []


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("AWS_ENDPOINT_URL", "127.0.0.1:9000", ["Invalid endpoint", "127.0.0.1:9000"]),
        ("AWS_PROFILE", "nobody", ["nobody"]),
        ("AWS_MAX_ATTEMPTS", "many", ["many"]),
    ],
)
def test_a_variable_that_makes_no_sense(
    server: Server,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    value: str,
    words: list[str],
) -> None:
    monkeypatch.setenv(variable, value)
    command("evaluate", MODEL, "--text", "a=b").assert_one_line(2, MODEL, *words)


def test_no_credentials(server: Server, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    command("evaluate", MODEL, "--text", "a=b").assert_one_line(2, MODEL, "credentials")


def test_a_server_that_is_down_is_asked_as_often_as_the_user_wants(
    server: Server, command: Command
) -> None:
    server.down = True
    command("evaluate", MODEL, "--text", "a=b").assert_one_line(3, MODEL, "503", "try again")
    assert len(server.asked) == ATTEMPTS


def test_without_a_wish_the_attempts_are_ours(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_MAX_ATTEMPTS")
    monkeypatch.setattr(s3_client, "ATTEMPTS", 3)
    server.down = True
    with pytest.raises(EnvironmentFailure):
        open_folder(MODEL).names()
    assert len(server.asked) == 3


def test_a_server_that_goes_down_while_a_tensor_is_read(server: Server) -> None:
    """Its retries are not repeated: a user learns in seconds that the server is gone."""
    checkpoint = open_checkpoint(MODEL)
    server.asked.clear()
    server.down = True
    with pytest.raises(EnvironmentFailure, match=f"{MODEL}/.*try again"):
        checkpoint.tensor("model.norm.weight")
    assert len(server.asked) == ATTEMPTS


def test_an_object_that_was_replaced_is_refused(
    put: Callable[[str, bytes], s3.S3File],
) -> None:
    """A header of one version and tensors of another would be a model that nobody made."""
    file = put("replaced", b"before")
    assert put("replaced", b"behind").state != file.state
    with pytest.raises(Refused, match="objects/replaced: changed while it was read"):
        read(file, 0, 6)


def test_an_object_that_became_shorter_is_refused(put: Callable[[str, bytes], s3.S3File]) -> None:
    file = put("shorter", bytes(100))
    put("shorter", b"")
    with pytest.raises(Refused, match="objects/shorter: changed while it was read"):
        read(file, 50, 50)


def test_an_object_that_was_removed_is_named(put: Callable[[str, bytes], s3.S3File]) -> None:
    file = put("removed", bytes(100))
    boto3.client("s3").delete_object(Bucket=BUCKET, Key="objects/removed")
    with pytest.raises(InvalidInput, match="objects/removed: no such object"):
        read(file, 50, 50)


def test_a_model_replaced_between_opening_and_reading_is_refused(
    server: Server, local: Path
) -> None:
    client, key = boto3.client("s3"), "tiny/moving"
    for path in local.iterdir():
        client.upload_file(str(path), BUCKET, f"{key}/{path.name}")
    checkpoint = open_checkpoint(f"s3://{BUCKET}/{key}")
    shard = next(iter(checkpoint.files))
    content = bytearray((local / shard).read_bytes())
    content[-1] ^= 1
    client.put_object(Bucket=BUCKET, Key=f"{key}/{shard}", Body=bytes(content))
    with pytest.raises(Refused, match=f"{shard}: changed while it was read"):
        _ = checkpoint.tensor_digest


# -- answers that break off ---------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.3, 0.999])
@pytest.mark.parametrize("part_bytes", [1000, 1 << 20])
def test_a_stream_that_breaks_off_is_read_to_its_end(
    put: Callable[[str, bytes], s3.S3File],
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    part_bytes: int,
    share: float,
) -> None:
    content = Random(1).randbytes(5000)
    file = put("broken", content)
    monkeypatch.setattr(s3, "PART_BYTES", part_bytes)
    server.breaking, server.share = s3_client.ATTEMPTS - 1, share
    assert read(file, 0, 5000) == content
    assert server.breaking == 0
    assert len(server.ranges) == -(-5000 // part_bytes) + s3_client.ATTEMPTS - 1


def test_what_came_before_the_break_is_not_asked_for_again(
    put: Callable[[str, bytes], s3.S3File], server: Server
) -> None:
    """A slow line that breaks often still gets there."""
    content = Random(2).randbytes(1000)
    file = put("often", content)
    server.breaking, server.share = 2, 0.6
    assert read(file, 0, 1000) == content
    assert server.ranges == [(0, 999), (600, 999), (840, 999)]


def test_a_stream_that_always_breaks_off_is_given_up(
    put: Callable[[str, bytes], s3.S3File], server: Server
) -> None:
    file = put("hopeless", bytes(1000))
    server.breaking, server.share = 10**6, 0.0
    with pytest.raises(EnvironmentFailure, match="objects/hopeless: gave 0 of 1000 bytes"):
        read(file, 0, 1000)
    assert len(server.asked) == s3_client.ATTEMPTS


def test_a_model_is_opened_through_streams_that_break_off(server: Server, local: Path) -> None:
    """The small files too: every one of the first answers breaks once."""
    expected = open_checkpoint(local).tensor_digest
    server.breaking = 4
    assert open_checkpoint(MODEL).tensor_digest == expected
    for name in ("config.json", "tokenizer.json"):
        server.breaking = 1
        assert open_folder(MODEL).read(name) == (local / name).read_bytes()
        assert server.breaking == 0
