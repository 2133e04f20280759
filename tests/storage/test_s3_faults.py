"""A model behind ``s3://``: every fault of the network and of the place told in one line."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import boto3
import pytest

from bipline.base.errors import EnvironmentFailure, InvalidInput, Refused
from bipline.model.opening import open_checkpoint
from bipline.storage import s3, s3_client
from bipline.storage.folder import open_folder
from tests.storage.conftest import BUCKET, MODEL, Command, read
from tests.storage.server import ATTEMPTS, Server, free_port

pytestmark = pytest.mark.usefixtures("uploaded")


# -- what can go wrong --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("s3://no-such-bucket/tiny/llama", ["no-such-bucket", "no such bucket"]),
        (f"s3://{BUCKET}/tiny/mamba", ["tiny/mamba", "no such model directory"]),
        (f"s3://{BUCKET}", [BUCKET, "no config.json"]),
        ("s3://", ["s3://", "names no bucket"]),
        ("s3://user:pass@bucket/tiny", ["takes no user and password"]),
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
