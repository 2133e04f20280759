"""What a Store behind S3 keeps besides: what is asked for, two writers at once, faults."""

from __future__ import annotations

import sys
from base64 import b64encode
from hashlib import sha256
from pathlib import Path
from random import Random

import boto3
import pytest
from botocore.exceptions import ClientError

from bipline.base.errors import EnvironmentFailure, InvalidInput, Refused
from bipline.storage import s3_transfer
from bipline.storage.manifest import MANIFEST_NAME
from bipline.storage.s3_client import S3Place, failures
from bipline.storage.s3_store import S3Store
from bipline.storage.s3_transfer import entry_of, upload
from bipline.storage.store import open_store
from tests.storage.server import Server
from tests.storage.stores import BUCKET, FILES, KEY, Case, content, fill, write

OTHER = {**FILES, "a.json": b"other"}
# The smallest part that S3 takes, the last one apart.
PART = 5 << 20


def names_of(paths: list[str]) -> list[str]:
    return [path.rsplit(f"{KEY[:32]}/", 1)[-1] for path in paths]


# -- what is asked for --------------------------------------------------------------------------


def test_find_asks_for_the_manifest_alone(place: Case, server: Server) -> None:
    write(place.open())
    server.asked.clear()
    assert place.open("second").find("stage", KEY)
    assert set(names_of([path for _, path, _ in server.asked])) == {MANIFEST_NAME}
    assert not server.written()


def test_the_manifest_is_put_last(place: Case, server: Server) -> None:
    write(place.open())
    assert names_of(server.written()) == [*sorted(FILES), MANIFEST_NAME]


def test_every_file_carries_the_checksum_of_the_manifest(place: Case, server: Server) -> None:
    handle = write(place.open())
    target = S3Place(handle.location)
    for name, data in FILES.items():
        head = boto3.client("s3").head_object(**target.address(name), ChecksumMode="ENABLED")
        assert head["ChecksumSHA256"] == b64encode(sha256(data).digest()).decode()


def test_what_was_uploaded_is_not_uploaded_again(place: Case, server: Server) -> None:
    def fail_at_the_end(method: str, path: str) -> None:
        server.down = server.down or (method == "PUT" and path.endswith(MANIFEST_NAME))

    server.before = fail_at_the_end
    with pytest.raises(EnvironmentFailure, match="503"):
        write(place.open())
    server.behave()
    assert place.open("second").find("stage", KEY) is None
    handle = write(place.open("second"))
    assert names_of(server.written()) == [MANIFEST_NAME]
    assert content(place.open("third").open(handle)) == FILES


def test_leftovers_of_another_try_are_replaced(place: Case, server: Server) -> None:
    """A killed run's file of other content, and one that is not made any more."""
    client, prefix = boto3.client("s3"), f"{place.open().location}/stage/{KEY[:32]}"
    for name in ("a.json", "old"):
        key = f"{prefix}/{name}".removeprefix(f"s3://{BUCKET}/")
        client.put_object(Bucket=BUCKET, Key=key, Body=b"left")
    handle = write(place.open())
    assert content(place.open("second").open(handle)) == FILES


def test_a_copy_is_fetched_once(place: Case, server: Server) -> None:
    handle = write(place.open())
    store = place.open("second")
    first = store.open(handle)
    server.asked.clear()
    assert store.open(handle) == first
    assert set(names_of([path for _, path, _ in server.asked])) == {MANIFEST_NAME}


def test_a_damaged_copy_is_fetched_again(place: Case, server: Server) -> None:
    handle = write(place.open())
    store = place.open("second")
    damaged = store.open(handle) / "a.json"
    damaged.chmod(0o644)
    damaged.write_bytes(b"[]")
    assert content(store.open(handle)) == FILES


def test_a_fetch_that_broke_off_goes_on(place: Case, server: Server) -> None:
    handle = write(place.open())
    store = place.open("second")

    def fail_at_the_last_file(method: str, path: str) -> None:
        server.down = server.down or (method == "GET" and path.endswith("weights.bin"))

    server.before = fail_at_the_last_file
    with pytest.raises(EnvironmentFailure):
        store.open(handle)
    server.behave()
    assert content(store.open(handle)) == FILES
    assert not [path for _, path, ranged in server.asked if ranged and path.endswith("a.json")]


# -- two writers --------------------------------------------------------------------------------


def test_the_second_of_two_writers_finds_what_the_first_stored(place: Case, server: Server) -> None:
    with place.open().write("stage", KEY, "test") as slow:
        fill(slow)
        handle = write(place.open("second"))
        server.asked.clear()
    assert server.written() == []
    assert place.open().find("stage", KEY) == handle


@pytest.mark.parametrize("files", [FILES, OTHER], ids=["same", "other"])
def test_a_writer_that_comes_between_upload_and_manifest(
    place: Case, server: Server, files: dict[str, bytes]
) -> None:
    """One manifest stands; whoever made something else is told, and spoils nothing."""
    between: list[str] = []

    def other_writer(method: str, path: str) -> None:
        if method == "PUT" and path.endswith(MANIFEST_NAME) and not between:
            between.append(path)
            between.append(write(place.open("second"), files=files).digest)

    server.before = other_writer
    if files == FILES:
        assert write(place.open()).digest == between[1]
    else:
        with pytest.raises(Refused, match="holds test") as refusal:
            write(place.open())
        assert between[1][:12] in str(refusal.value)
    handle = place.open().find("stage", KEY)
    assert handle is not None
    assert handle.digest == between[1]
    assert content(place.open("third").open(handle)) == files


def test_other_content_under_the_same_key_is_refused_naming_both(
    place: Case, server: Server
) -> None:
    with (
        pytest.raises(Refused, match="same key") as refusal,
        place.open().write("stage", KEY, "test") as slow,
    ):
        fill(slow, OTHER)
        handle = write(place.open("second"))
        mine = slow.manifest().digest
    assert handle.digest[:12] in str(refusal.value)
    assert mine[:12] in str(refusal.value)
    assert content(place.open("third").open(handle)) == FILES


# -- large files --------------------------------------------------------------------------------


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of three parts."""
    monkeypatch.setattr(s3_transfer, "UPLOAD_BYTES", PART)
    path = tmp_path / "large"
    path.write_bytes(Random(0).randbytes(2 * PART + 1000))
    return path


def test_a_large_file_goes_in_parts_once(large: Path, place: Case, server: Server) -> None:
    target = S3Place(place.place)
    upload(target, "large", large, entry_of(large))
    assert len(server.written()) == 3
    found = boto3.client("s3").get_object(**target.address("large"))
    assert found["Body"].read() == large.read_bytes()
    server.asked.clear()
    upload(target, "large", large, entry_of(large))
    assert {method for method, _, _ in server.asked} == {"HEAD"}


def test_a_file_that_changed_after_it_was_hashed_is_not_stored(
    large: Path, place: Case, server: Server
) -> None:
    target, entry = S3Place(place.place), entry_of(large)
    large.write_bytes(large.read_bytes()[:-1] + b"!")
    with pytest.raises(Refused, match="changed after it was hashed"):
        upload(target, "large", large, entry)
    assert target.head("large") is None
    assert "Uploads" not in boto3.client("s3").list_multipart_uploads(Bucket=BUCKET)


@pytest.mark.parametrize("size", [10, 2 * PART])
def test_an_object_that_appears_meanwhile_is_not_overwritten(
    large: Path, place: Case, server: Server, size: int
) -> None:
    target = S3Place(place.place)
    large.write_bytes(bytes(size))
    once: list[str] = []

    def other_writer(method: str, path: str) -> None:
        if method in ("PUT", "POST") and not once:
            once.append(path)
            boto3.client("s3").put_object(**target.address("large"), Body=b"theirs")

    server.before = other_writer
    with pytest.raises(Refused, match="another writer"):
        upload(target, "large", large, entry_of(large))
    assert boto3.client("s3").get_object(**target.address("large"))["Body"].read() == b"theirs"


# -- faults -------------------------------------------------------------------------------------


def test_a_server_that_is_down(place: Case, server: Server) -> None:
    store = place.open()
    handle = write(store)
    server.down = True
    for ask in (lambda: store.find("stage", KEY), lambda: store.open(handle)):
        with pytest.raises(EnvironmentFailure, match="try again"):
            ask()


@pytest.mark.parametrize(
    ("code", "error", "words"),
    [
        ("BadDigest", Refused, "does not match its checksum"),
        ("PreconditionFailed", Refused, "changed while it was read"),
        ("AccessDenied", InvalidInput, "check the credentials"),
        ("NoSuchBucket", InvalidInput, "no such bucket"),
        ("SlowDown", EnvironmentFailure, "SlowDown; try again"),
    ],
)
def test_what_an_answer_means(code: str, error: type[Exception], words: str) -> None:
    answer = {"Error": {"Code": code, "Message": "told"}}
    with pytest.raises(error, match=f"^s3://a/b: .*{words}"), failures("s3://a/b"):
        raise ClientError(answer, "PutObject")


def test_a_bucket_that_is_not_there(server: Server, tmp_path: Path) -> None:
    store = S3Store("s3://nowhere/prefix", tmp_path)
    with pytest.raises(InvalidInput, match="no such bucket"):
        write(store)
    with pytest.raises(InvalidInput, match="names no bucket"):
        open_store("s3://", tmp_path)


def test_without_boto3_the_extra_is_named(
    place: Case, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    for _ in range(2):
        with pytest.raises(InvalidInput, match=r"pip install 'bipline\[s3\]'"):
            place.open().find("stage", KEY)
