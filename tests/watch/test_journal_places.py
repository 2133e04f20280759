"""A watch's journal in a folder and behind ``s3://``: one of two at once wins, holds end."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

from bipline.base.errors import InvalidInput
from bipline.values.release import WatchBegin, WatchRecord
from bipline.watch.journal import Journal, LocalHolds, LocalRecords, Records, Standing
from bipline.watch.journal_s3 import S3Records
from tests.storage.server import Server, running_server
from tests.watch.world import release

BUCKET = "watch"
FIRST = release(1)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running_server() as running:
        boto3.client("s3").create_bucket(Bucket=BUCKET)
        yield running


@pytest.fixture(params=["folder", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Records]:
    if request.param == "folder":
        yield LocalRecords(tmp_path / "journal")
        return
    request.getfixturevalue("server").behave()
    yield S3Records(f"s3://{BUCKET}/{uuid.uuid4().hex}")


def seen(watcher: str = "one") -> WatchRecord:
    return WatchRecord(state="seen", at="2026-12-01", watcher=watcher, release=FIRST)


def test_records_come_back_in_order(place: Records) -> None:
    journal = Journal(place)
    assert journal.standing(FIRST.key) is None and journal.standings() == {}
    standing = journal.append(FIRST.key, None, seen())
    for state in ("claimed", "running", "done"):
        record = WatchRecord(state=state, at="2026-12-01", watcher="one")  # type: ignore[arg-type]
        standing = journal.append(FIRST.key, standing, record)
    assert standing is not None
    told = Journal(place).standings()
    assert told == {FIRST.key: standing} == {FIRST.key: Journal(place).standing(FIRST.key)}
    assert told[FIRST.key].release == FIRST and told[FIRST.key].last.state == "done"


def test_of_many_that_follow_the_same_record_one_wins(place: Records) -> None:
    won: list[Standing] = []
    barrier = threading.Barrier(6)

    def claim(number: int) -> None:
        journal = Journal(place)
        barrier.wait()
        if found := journal.append(FIRST.key, None, seen(f"watcher-{number}")):
            won.append(found)

    threads = [threading.Thread(target=claim, args=(number,)) for number in range(6)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len(won) == 1
    assert Journal(place).standing(FIRST.key) == won[0]


def test_the_first_look_counts_for_all(place: Records) -> None:
    first = WatchBegin(place="here", at="2026-12-01", watcher="one", known=("a",))
    assert Journal(place).begin("here") is None
    assert Journal(place).begun(first) == first
    assert Journal(place).begun(first.model_copy(update={"known": ()})) == first
    assert Journal(place).begin("here") == first


def test_a_hold_is_one_watchers(place: Records) -> None:
    hold = place.hold(FIRST.key)
    assert hold is not None and hold.held
    assert place.hold(FIRST.key) is None
    assert place.hold("other") is not None
    hold.release()
    assert place.hold(FIRST.key) is not None


def test_a_record_that_was_removed_stops_the_watch(place: Records, tmp_path: Path) -> None:
    journal = Journal(place)
    standing = journal.append(FIRST.key, None, seen())
    journal.append(FIRST.key, standing, WatchRecord(state="done", at="2026-12-01", watcher="one"))
    if isinstance(place, LocalRecords):
        (place.folder / "releases" / FIRST.key / "0001.json").unlink()
    else:
        bucket, _, prefix = place.location.removeprefix("s3://").partition("/")
        key = f"{prefix}/releases/{FIRST.key}/0001.json"
        boto3.client("s3").delete_object(Bucket=bucket, Key=key)
    with pytest.raises(InvalidInput, match="a record before the last is missing"):
        Journal(place).standings()


def test_what_is_no_record_is_one_line(tmp_path: Path) -> None:
    """As a folder that is synchronised makes them, and a record under another's key."""
    place = LocalRecords(tmp_path)
    Journal(place).append(FIRST.key, None, seen())
    record = tmp_path / "releases" / FIRST.key / "0001.json"
    copy = record.with_name("0001 (conflicted copy).json")
    copy.write_bytes(record.read_bytes())
    with pytest.raises(InvalidInput, match="is no record"):
        Journal(place).standings()
    copy.unlink()
    other = tmp_path / "releases" / ("0" * 64)
    other.mkdir()
    (other / "0001.json").write_bytes(record.read_bytes())
    with pytest.raises(InvalidInput, match="another's"):
        Journal(place).standings()


@pytest.mark.slow
def test_a_lease_of_a_watcher_that_is_gone_ends(server: Server) -> None:
    location = f"s3://{BUCKET}/{uuid.uuid4().hex}"
    hold = S3Records(location, lease_seconds=1.0).hold(FIRST.key)
    assert hold is not None
    time.sleep(1.6)
    other = S3Records(location, lease_seconds=1.0)
    assert hold.held and other.hold(FIRST.key) is None, "renewed while it lives"
    hold._renewing.close()  # as a process that is gone
    deadline = time.monotonic() + 10
    while (taken := other.hold(FIRST.key)) is None and time.monotonic() < deadline:
        time.sleep(0.2)
    assert taken is not None and not hold.held
    taken.release()


def test_a_lock_is_gone_with_the_last_process_that_has_it(tmp_path: Path) -> None:
    holds = LocalHolds(tmp_path)
    hold = holds.take("a")
    assert hold is not None
    program = "import sys; print('up', flush=True); sys.stdin.read()"
    child = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        pass_fds=hold.descriptors,
    )  # fmt: skip
    assert child.stdout is not None and child.stdin is not None
    child.stdout.readline()
    hold.release()
    assert holds.take("a") is None, "the child works on"
    child.kill()
    child.communicate()
    assert holds.take("a") is not None


def test_nothing_half_written_is_a_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = LocalRecords(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            place.create(f"releases/{FIRST.key}/0001.json", seen().to_json())
    assert Journal(place).standings() == {}
    assert Journal(place).append(FIRST.key, None, seen()) is not None
