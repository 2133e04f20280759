"""Unfinished work in every Store, on the disk and behind S3: one set of tests for both."""

from __future__ import annotations

from pathlib import Path

import pytest

from bipline.base.errors import InvalidInput
from tests.storage.stores import KEY, OTHER_KEY, Case, wait_until


def record(work: Path, number: int) -> None:
    """What a stage leaves of a block: its numbers, then the record that names them."""
    (work / "part").mkdir(exist_ok=True)
    (work / "part" / f"block-{number}.bin").write_bytes(bytes([number]) * 1000)
    (work / "part" / f"block-{number}.json").write_text("{}")


def test_work_that_is_done_leaves_nothing(case: Case) -> None:
    store = case.open()
    with store.work("stage", KEY) as work:
        record(work, 0)
        if case.is_s3:
            wait_until(lambda: any(name.endswith("block-0.json") for name in case.names()))
    assert case.names() == []
    assert not list(case.folder.rglob("block-*"))
    with store.work("stage", KEY) as work:
        assert not list(work.rglob("block-*"))


def test_records_outlive_a_failure(case: Case) -> None:
    with pytest.raises(KeyboardInterrupt), case.open().work("stage", KEY) as work:
        record(work, 0)
        raise KeyboardInterrupt
    with case.open("second").work("stage", KEY) as work:
        assert (work / "part" / "block-0.bin").read_bytes() == bytes(1000)
    assert case.names() == []


def test_unusable_input_leaves_nothing(case: Case) -> None:
    with pytest.raises(InvalidInput), case.open().work("stage", KEY) as work:
        record(work, 0)
        raise InvalidInput
    assert case.names() == []


def test_unusable_input_does_not_remove_what_was_taken_up(case: Case) -> None:
    with pytest.raises(RuntimeError), case.open().work("stage", KEY) as work:
        record(work, 0)
        raise RuntimeError
    with pytest.raises(InvalidInput), case.open("second").work("stage", KEY) as work:
        raise InvalidInput
    with case.open("third").work("stage", KEY) as work:
        assert (work / "part" / "block-0.json").is_file()


def test_a_second_holder_is_refused(case: Case) -> None:
    with case.open().work("stage", KEY) as work:
        record(work, 0)
        for machine in ("first", "second"):
            with (
                pytest.raises(InvalidInput, match="another process is working") as refusal,
                case.open(machine).work("stage", KEY),
            ):
                pass
            assert "\n" not in str(refusal.value)
        with case.open("second").work("stage", OTHER_KEY):
            pass
        assert (work / "part" / "block-0.json").is_file()
    with case.open("second").work("stage", KEY):
        pass


def test_killed_work_is_gone_on_from_elsewhere(case: Case) -> None:
    """On another disk once the lease has ended; the same records, and then nothing stays."""
    killed = case.run(
        "import time\n"
        "from tests.storage.stores import wait_until\n"
        "from tests.storage.test_store_work import record\n"
        "with store.work('stage', KEY) as work:\n"
        "    record(work, 0)\n"
        "    (work / 'part' / 'block-0.bin').unlink()\n"
        "    record(work, 1)\n"
        "    (work / 'part' / 'block-2.partial').write_text('half')\n"
        f"    case = Case({case.place!r}, Path({str(case.folder)!r}))\n"
        "    wait_until(lambda: any(n.endswith('block-1.json') for n in case.names()))\n"
        "    time.sleep(0.2)\n"
        "    os._exit(9)"
    )
    assert killed.returncode == 9, killed.stderr
    waiting = []

    def free() -> bool:
        try:
            with case.open("second").work("stage", KEY) as work:
                found = {p.name for p in work.rglob("block-*") if p.suffix != ".partial"}
                assert found == {"block-0.json", "block-1.bin", "block-1.json"}
                assert (work / "part" / "block-1.bin").read_bytes() == b"\1" * 1000
        except InvalidInput:
            waiting.append(1)
            return False
        return True

    wait_until(free)
    assert bool(waiting) == case.is_s3
    assert case.names() == []


def test_killed_work_is_gone_on_from_at_once_on_the_same_machine(case: Case) -> None:
    killed = case.run(
        "from tests.storage.test_store_work import record\n"
        "with store.work('stage', KEY) as work:\n"
        "    record(work, 0)\n"
        "    os._exit(9)"
    )
    assert killed.returncode == 9, killed.stderr
    with case.open().work("stage", KEY) as work:
        assert (work / "part" / "block-0.json").is_file()
    assert case.names() == []
