"""Releases that are folders: on this machine and behind ``s3://``; what they are known by."""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import pytest

from bipline.base.errors import EnvironmentFailure, InvalidInput
from bipline.model.opening import open_checkpoint
from bipline.settings.watch import SourceSettings
from bipline.values.release import Release
from bipline.watch.source_folders import is_settled
from bipline.watch.sources import Source, open_source
from tests.storage.server import Server, running_server
from tests.watch.world import CONFIG

BUCKET = "releases"


def source_of(known: Path, **settings: Any) -> Source:
    values = {"compress": str(CONFIG), "settled": 0, **settings}
    return open_source("tiny", SourceSettings.model_validate(values), known, None)


def listed(source: Source) -> dict[str, Release]:
    return {each.name: each for place in source.places for each in source.listed(place)}


@pytest.fixture
def models(llama: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    shutil.copytree(llama, folder / "a")
    (folder / "empty").mkdir()
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "config.json").touch()
    (folder / "notes.txt").touch()
    return folder


def test_a_folder_is_known_by_its_files_and_not_by_its_name(models: Path, tmp_path: Path) -> None:
    source = source_of(tmp_path, folder=str(models))
    before = listed(source)
    assert list(before) == ["a"] and before["a"].model == str(models / "a")
    (models / "a").rename(models / "b")
    os.utime(models / "b" / "config.json")
    (models / "b" / "README.md").write_text("changed")
    assert listed(source)["b"].key == before["a"].key
    assert (
        source_of(tmp_path, folder=str(models)).listed(source.places[0])[0].run.startswith("tiny-b")
    )
    shutil.copytree(models / "b", models / "a")
    both = listed(source)
    assert both["a"].key == both["b"].key
    weights = models / "a" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert listed(source)["a"].key != before["a"].key


def test_a_folder_that_cannot_be_read_hides_no_other(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr("bipline.watch.source_folders.note", said.append)
    shutil.copytree(models / "a", models / "b")
    (models / "a" / "more.safetensors").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").write_bytes(b"1")
    assert list(listed(source_of(tmp_path, folder=str(models)))) == ["b"]
    [line] = said
    assert line.startswith(f"{models / 'a'}: left out:")


def test_files_are_hashed_once(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = source_of(tmp_path, folder=str(models))
    first = listed(source)

    def refuse(path: Path) -> str:
        raise AssertionError(f"{path} is hashed again")

    monkeypatch.setattr("bipline.watch.source_folders.digest_file", refuse)
    assert listed(source_of(tmp_path, folder=str(models))) == first
    os.utime(models / "a" / "config.json")
    with pytest.raises(AssertionError, match="hashed again"):
        listed(source)


def test_what_is_being_copied_is_left_alone(models: Path, tmp_path: Path) -> None:
    assert listed(source_of(tmp_path, folder=str(models), settled=3600)) == {}
    for path in (models / "a").iterdir():
        os.utime(path, (0, datetime.now(UTC).timestamp() - 3700))
    # As `cp -p` leaves it: the times are those of the original, the copy may go on.
    assert listed(source_of(tmp_path, folder=str(models), settled=3600)) == {}
    time.sleep(1.1)
    assert list(listed(source_of(tmp_path, folder=str(models), settled=1))) == ["a"]
    now = datetime.now(UTC)
    assert not is_settled(now + timedelta(seconds=5), 1, now), "from a clock that is ahead"


def test_a_closer_look_says_what_it_is(models: Path, tmp_path: Path) -> None:
    (models / "a" / "LICENSE").write_text("\nMIT License\nmore\n")
    source = source_of(tmp_path, folder=str(models))
    found = source.described(listed(source)["a"])
    parameters = open_checkpoint(models / "a").parameters
    assert (found.family, found.parameters, found.licence) == ("llama", parameters, "MIT License")
    (models / "a" / "README.md").write_text("---\nlicense: mit\n---\n")
    assert source.described(listed(source)["a"]).licence == "mit"


def test_half_a_model_and_one_that_changes_are_none(models: Path, tmp_path: Path) -> None:
    source = source_of(tmp_path, folder=str(models))
    release = listed(source)["a"]
    weights = models / "a" / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-100])
    with pytest.raises(EnvironmentFailure, match="changes while"):
        source.described(release)
    with pytest.raises(InvalidInput, match="not a whole safetensors file"):
        source.described(listed(source)["a"])


def test_what_changes_between_look_and_start_is_seen(models: Path, tmp_path: Path) -> None:
    source = source_of(tmp_path, folder=str(models))
    release = listed(source)["a"]
    assert source.is_still(release)
    weights = models / "a" / "model.safetensors"
    content, times = weights.read_bytes(), weights.stat()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert not source.is_still(release), "whatever its times say"
    assert listed(source)["a"].key != release.key
    weights.write_bytes(content)
    assert source.is_still(release)
    shutil.rmtree(models / "a")
    assert source.is_still(release), "its run says that it is gone"


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no such directory of models"):
        listed(source_of(tmp_path, folder=str(tmp_path / "nothing")))


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running_server() as running:
        boto3.client("s3").create_bucket(Bucket=BUCKET)
        yield running


@pytest.fixture
def upload(server: Server) -> Callable[[Path, str], None]:
    server.behave()

    def upload(folder: Path, prefix: str) -> None:
        for path in folder.iterdir():
            boto3.client("s3").upload_file(str(path), BUCKET, f"{prefix}/{path.name}")

    return upload


def test_folders_below_a_prefix(
    models: Path, tmp_path: Path, upload: Callable[[Path, str], None], server: Server
) -> None:
    top = uuid.uuid4().hex
    source = source_of(tmp_path, s3=f"s3://{BUCKET}/{top}/")
    assert listed(source) == {}
    upload(models / "a", f"{top}/org/a")
    boto3.client("s3").put_object(Bucket=BUCKET, Key=f"{top}/org/", Body=b"")
    boto3.client("s3").put_object(Bucket=BUCKET, Key=f"{top}/org/notes.txt", Body=b"no model")
    [release] = listed(source).values()
    assert release.name == "org/a" and release.model == f"s3://{BUCKET}/{top}/org/a"
    assert source.described(release).family == "llama"
    upload(models / "a", f"{top}/renamed")
    assert listed(source)["renamed"].key == release.key and source.is_still(release)
    boto3.client("s3").put_object(Bucket=BUCKET, Key=f"{top}/org/a/README.md", Body=b"told")
    assert listed(source)["org/a"].key == release.key
    boto3.client("s3").put_object(Bucket=BUCKET, Key=f"{top}/org/a/config.json", Body=b"{}")
    assert listed(source)["org/a"].key != release.key and not source.is_still(release)
    with pytest.raises(InvalidInput):
        source.described(listed(source)["org/a"])
    assert listed(source_of(tmp_path, s3=f"s3://{BUCKET}/{top}", settled=600)) == {}
    # A prefix that is a model itself.
    alone = source_of(tmp_path, s3=f"s3://{BUCKET}/{top}/renamed")
    assert listed(alone)["renamed"].model == f"s3://{BUCKET}/{top}/renamed"


def test_a_server_that_is_down(tmp_path: Path, server: Server) -> None:
    server.down = True
    with pytest.raises(EnvironmentFailure):
        listed(source_of(tmp_path, s3=f"s3://{BUCKET}/any"))
    server.behave()
