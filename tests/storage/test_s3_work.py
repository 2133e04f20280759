"""Unfinished work behind S3: no mirror is ahead of itself, and one holder works at a time."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from bipline.base.errors import InvalidInput
from bipline.storage.s3_client import S3Place
from bipline.storage.s3_lease import Lease
from bipline.storage.s3_store import S3Store
from bipline.storage.s3_work import Mirror
from tests.storage.server import ATTEMPTS, Server
from tests.storage.stores import KEY, LEASE_SECONDS, MIRROR_SECONDS, Case, wait_until
from tests.storage.test_store_work import record

LOCK = "stage.lock"


def held_lease(place: Case, seconds: float = 60) -> Lease:
    lease = Lease(S3Place(place.place), LOCK, seconds)
    lease.take("")
    return lease


@pytest.fixture
def mirror(place: Case, tmp_path: Path) -> Mirror:
    """A mirror whose rounds the test calls for."""
    local = tmp_path / "work"
    local.mkdir()
    return Mirror(S3Place(place.place).below("stage"), local, held_lease(place), 1000)


def copy(mirror: Mirror) -> None:
    mirror._copy(everything=True)


def mirrored(place: Case) -> set[str]:
    return {Path(name).name for name in place.names() if not name.endswith(".lock")}


def listed_put(server: Server) -> list[str]:
    return [Path(path).name for path in server.written() if not path.endswith(".lock")]


# -- the mirror ---------------------------------------------------------------------------------


def test_files_go_in_the_order_of_their_writing(mirror: Mirror, server: Server) -> None:
    names = ["z.bin", "z.json", "a.bin", "a.json", "m.json"]
    for number, name in enumerate(names):
        (mirror.local / name).write_text(name)
        os.utime(mirror.local / name, ns=(0, 10**9 * (number + 1)))
    copy(mirror)
    assert listed_put(server) == names


def test_a_record_of_the_same_tick_goes_last(mirror: Mirror, server: Server) -> None:
    for name in ("a.json", "b.bin", "c.json", "d.bin"):
        (mirror.local / name).write_text(name)
        os.utime(mirror.local / name, ns=(0, 10**9))
    copy(mirror)
    assert [Path(name).suffix for name in listed_put(server)] == [".bin"] * 2 + [".json"] * 2


def test_only_changes_are_copied_and_removals_too(
    mirror: Mirror, server: Server, place: Case
) -> None:
    record(mirror.local, 0)
    (mirror.local / "part" / "half.partial").write_text("half")
    copy(mirror)
    assert mirrored(place) == {"block-0.bin", "block-0.json"}
    server.asked.clear()
    copy(mirror)
    assert server.asked == []
    record(mirror.local, 1)
    (mirror.local / "part" / "block-0.bin").unlink()
    (mirror.local / "part" / "block-0.json").write_text('{"changed": 1}')
    copy(mirror)
    assert sorted(listed_put(server)) == ["block-0.json", "block-1.bin", "block-1.json"]
    assert mirrored(place) == {"block-0.json", "block-1.bin", "block-1.json"}


def test_what_is_written_during_a_round_waits_for_the_next(
    mirror: Mirror, server: Server, place: Case
) -> None:
    """Else a record could be there before what it names."""
    record(mirror.local, 0)
    mirror._copy()
    assert mirrored(place) == set()

    def waited() -> bool:
        mirror._copy()
        return len(mirrored(place)) == 2

    wait_until(waited)


def test_a_file_removed_while_it_is_copied_is_copied_whole(
    mirror: Mirror, server: Server, place: Case
) -> None:
    """A round is one moment of the work, however long its upload takes."""
    record(mirror.local, 0)

    def replace(method: str, path: str) -> None:
        if method == "PUT" and (mirror.local / "part" / "block-0.bin").exists():
            record(mirror.local, 1)
            (mirror.local / "part" / "block-0.bin").unlink()

    server.before = replace
    copy(mirror)
    assert mirrored(place) == {"block-0.bin", "block-0.json"}
    copy(mirror)
    assert mirrored(place) == {"block-0.json", "block-1.bin", "block-1.json"}
    assert not list(mirror.local.parent.glob("*.mirror"))


def test_fetching_gives_the_same_files_and_copies_none_again(
    mirror: Mirror, server: Server, place: Case, tmp_path: Path
) -> None:
    record(mirror.local, 0)
    copy(mirror)
    other = Mirror(mirror._place, tmp_path / "other", mirror._lease, 1000)
    (other.local / "stale").mkdir(parents=True)
    (other.local / "stale" / "block-9.json").write_text("{}")
    other.fetch()
    found = {p.relative_to(other.local) for p in other.local.rglob("block-*")}
    assert found == {Path("part/block-0.bin"), Path("part/block-0.json")}
    assert (other.local / "part" / "block-0.bin").read_bytes() == bytes(1000)
    server.asked.clear()
    copy(other)
    assert listed_put(server) == [".bipline-work"]


def test_a_mirrored_file_that_was_damaged_is_left_out(
    mirror: Mirror, server: Server, place: Case, tmp_path: Path
) -> None:
    record(mirror.local, 0)
    copy(mirror)
    digest = mirror._place.head("part/block-0.bin")
    assert digest is not None
    mirror._place.put("part/block-0.bin", b"damaged", None, Metadata=digest["Metadata"])
    other = Mirror(mirror._place, tmp_path / "other", mirror._lease, 1000)
    other.fetch()
    assert {p.name for p in other.local.rglob("block-*")} == {"block-0.json"}


def test_work_goes_on_while_s3_is_down(
    place: Case, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes: list[str] = []
    monkeypatch.setattr("bipline.storage.s3_work.note", notes.append)
    store = S3Store(place.place, place.folder / "first", 60, MIRROR_SECONDS)
    with pytest.raises(KeyboardInterrupt), store.work("stage", KEY) as work:
        server.down = True
        record(work, 0)
        wait_until(lambda: bool(notes))
        server.asked.clear()
        wait_until(lambda: len(server.asked) > 2 * ATTEMPTS)
        server.down = False
        record(work, 1)
        wait_until(lambda: "block-1.json" in mirrored(place))
        raise KeyboardInterrupt
    assert len(notes) == 1
    assert "not copied to S3" in notes[0]
    with place.open("second").work("stage", KEY) as work:
        assert len(list(work.rglob("block-*"))) == 4


def test_the_newest_holder_s_records_are_taken_up(place: Case, server: Server) -> None:
    """Not those that lie on this disk since an earlier holding."""
    for number, machine in enumerate(("first", "second", "first", "first", "second")):
        with pytest.raises(KeyboardInterrupt), place.open(machine).work("stage", KEY) as work:
            found = {path.name for path in work.rglob("block-*.json")}
            assert found == {f"block-{each}.json" for each in range(number)}
            record(work, number)
            raise KeyboardInterrupt


# -- the lease ----------------------------------------------------------------------------------


def test_a_live_holder_keeps_others_out_longer_than_its_lease(place: Case, server: Server) -> None:
    with place.open().work("stage", KEY):
        time.sleep(LEASE_SECONDS + 2.5)
        with (
            pytest.raises(InvalidInput, match="another process"),
            place.open("second").work("stage", KEY),
        ):
            pass


def test_a_lease_that_is_not_renewed_ends(place: Case, server: Server) -> None:
    first = held_lease(place, 0.2)
    second = Lease(S3Place(place.place), LOCK, 60)
    with pytest.raises(InvalidInput, match=r"lease ends within"):
        second.take("")
    time.sleep(0.3)
    assert not first.held

    def taken() -> bool:
        try:
            return second.take("") == first.holder
        except InvalidInput:
            return False

    wait_until(taken)
    with first.renewing():
        time.sleep(0.3)
    assert not first.held
    assert second.held
    first.release()
    first.remove()
    with pytest.raises(InvalidInput):
        Lease(S3Place(place.place), LOCK, 60).take("")


def test_of_two_takers_one_gets_it(place: Case, server: Server) -> None:
    """Both see that it is free, and both write."""
    held_lease(place).release()
    both = threading.Barrier(2)
    waiting = {"PUT": 2}

    def meet(method: str, path: str) -> None:
        if method == "PUT" and waiting["PUT"]:
            waiting["PUT"] -= 1
            both.wait(10)

    server.before = meet
    got: list[str] = []

    def take() -> None:
        try:
            Lease(S3Place(place.place), LOCK, 60).take("")
            got.append("taken")
        except InvalidInput:
            got.append("refused")

    threads = [threading.Thread(target=take) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == ["refused", "taken"]


def test_whoever_lost_the_lease_spoils_nothing(place: Case, server: Server) -> None:
    """Its block ends well, and the other holder's lease and mirror stay."""
    with place.open().work("stage", KEY) as work:
        record(work, 0)
        wait_until(lambda: "block-0.json" in mirrored(place))
        lock = S3Place(f"{place.place}/work/stage")
        lock.put(f"{KEY[:32]}.lock", b"theirs", None, Metadata={"holder": "x", "seconds": "60"})
        time.sleep(2 * LEASE_SECONDS)
        record(work, 1)
        time.sleep(0.2)
    assert mirrored(place) == {".bipline-work", "block-0.bin", "block-0.json"}
    with (
        pytest.raises(InvalidInput, match="another process"),
        place.open("second").work("stage", KEY),
    ):
        pass
