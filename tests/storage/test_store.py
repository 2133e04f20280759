"""What every Store keeps, on the disk and behind S3: one set of tests for both."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bipline.base.errors import InvalidInput, Refused
from bipline.storage.manifest import MANIFEST_NAME, read_manifest
from bipline.storage.store import StoredGone, open_store
from tests.storage.stores import (
    FILES,
    KEY,
    OTHER_KEY,
    Case,
    content,
    fill,
    write,
)


def test_what_was_written_is_found_by_everybody(case: Case) -> None:
    assert case.open().find("stage", KEY) is None
    handle = write(case.open())
    assert (handle.kind, handle.info) == ("test", {"declared": 1})
    assert handle.total_bytes == sum(map(len, FILES.values()))
    other = case.open("second")
    assert other.find("stage", KEY) == handle
    assert other.find("stage", OTHER_KEY) is None
    assert other.find("other", KEY) is None
    for store in (case.open(), other):
        directory = store.open(handle)
        assert content(directory) == FILES
        assert read_manifest(directory).digest == handle.digest
        assert not any(p.stat().st_mode & 0o222 for n in FILES if (p := directory / n))


def test_both_stores_give_the_same_digest(case: Case, tmp_path: Path) -> None:
    local = write(Case(str(tmp_path / "oracle"), tmp_path).open())
    assert write(case.open()).digest == local.digest


@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.dictionaries(
        st.text("abcXYZ .-_éß+%#", min_size=1, max_size=8).filter(lambda n: n.strip(". ")),
        st.binary(max_size=200),
        max_size=4,
    )
)
def test_any_files_come_back(case: Case, files: dict[str, bytes]) -> None:
    key = uuid.uuid4().hex * 2
    handle = write(case.open(), key, files)
    assert content(case.open("second").open(handle)) == files


def test_nothing_is_there_before_all_is(case: Case) -> None:
    store = case.open()
    with store.write("stage", KEY, "test") as writer:
        fill(writer)
        for seen in (store, case.open("second")):
            assert seen.find("stage", KEY) is None
    assert store.find("stage", KEY)


def test_an_error_leaves_nothing(case: Case) -> None:
    store = case.open()
    with pytest.raises(RuntimeError), store.write("stage", KEY, "test") as writer:
        fill(writer)
        raise RuntimeError
    assert store.find("stage", KEY) is None
    assert case.names() == []


@pytest.mark.parametrize("key", [KEY, OTHER_KEY])
def test_a_killed_writer_leaves_its_finished_files_to_its_own_key(case: Case, key: str) -> None:
    killed = case.run(
        "from bipline.storage.digests import digest_bytes\n"
        "with store.write('stage', KEY, 'test') as writer:\n"
        "    fill(writer)\n"
        "    for name in ('weights.bin', 'below/empty'):\n"
        "        size, digest = len(FILES[name]), digest_bytes(FILES[name])\n"
        "        writer.add_hashed(name, size, digest)\n"
        "    os._exit(9)"
    )
    assert killed.returncode == 9, killed.stderr
    store = case.open()
    assert store.find("stage", KEY) is None
    with store.write("stage", key, "test") as writer:
        taken_up = {p.relative_to(writer.path).as_posix() for p in writer.path.rglob("*.*")}
        assert {name for name in FILES if writer.has(name)} == (
            {"weights.bin", "below/empty"} if key == KEY else set()
        )
        assert taken_up == ({"weights.bin"} if key == KEY else set())
        missing = {name: data for name, data in FILES.items() if not writer.has(name)}
        fill(writer, missing)
    handle = store.find("stage", key)
    assert handle is not None
    assert content(store.open(handle)) == FILES


def test_a_second_writer_of_one_machine_is_refused(case: Case) -> None:
    store = case.open()
    with store.write("stage", KEY, "test") as writer:
        with (
            pytest.raises(InvalidInput, match="another process"),
            case.open().write("stage", KEY, "test"),
        ):
            pass
        fill(writer)
    assert store.find("stage", KEY)


def test_a_changed_byte_is_refused(case: Case) -> None:
    handle = write(case.open())
    damaged = bytearray(FILES["weights.bin"])
    damaged[100] ^= 1
    case.change(handle, "weights.bin", bytes(damaged))
    with pytest.raises(Refused, match=r"weights\.bin does not match"):
        case.open("second").open(handle)


def test_a_file_more_and_a_file_less_are_refused(case: Case) -> None:
    handle = write(case.open(), files={"a.json": b"1"})
    case.change(handle, "b.json", b"2") if case.is_s3 else Path(
        handle.location, "b.json"
    ).write_bytes(b"2")
    with pytest.raises(Refused, match=r"b\.json is not listed"):
        case.open("second").open(handle)


def test_other_content_than_the_handle_s_is_refused(case: Case) -> None:
    store = case.open()
    handle = write(store)
    store.discard("stage", KEY)
    write(store, files={"a.json": b"other"})
    with pytest.raises(Refused, match="handle was made for"):
        case.open("second").open(handle)


def test_what_is_gone_is_told(case: Case) -> None:
    store = case.open()
    handle = write(store)
    case.remove(handle)
    with pytest.raises(StoredGone, match=f"{handle.location}: the stored test is gone"):
        store.open(handle)
    assert store.find("stage", KEY) is None


def test_discard_removes_one_key_alone(case: Case) -> None:
    store = case.open()
    kept = write(store, OTHER_KEY, {"a.json": b"kept"})
    names = case.names()
    gone = write(store)
    store.discard("stage", KEY)
    store.discard("stage", KEY)
    assert store.find("stage", KEY) is None
    assert case.names() == names
    with pytest.raises(StoredGone):
        store.open(gone)
    assert content(store.open(kept)) == {"a.json": b"kept"}
    assert write(store) == gone


def test_cost_lies_beside_and_changes_no_digest(case: Case) -> None:
    store, cost = case.open(), {"seconds": 1.5, "peak_bytes": 7}
    assert store.read_cost("stage", KEY) is None
    store.write_cost("stage", KEY, {"seconds": 9.0})
    handle = write(store)
    store.write_cost("stage", KEY, cost)
    assert case.open("second").read_cost("stage", KEY) == cost
    assert store.read_cost("stage", OTHER_KEY) is None
    assert store.find("stage", KEY) == handle
    assert content(case.open("second").open(handle)) == FILES


def test_ranges_are_read_in_place(case: Case) -> None:
    handle = write(case.open())
    other = case.open("second")
    folder = other.folder(handle)
    assert folder.exists()
    assert folder.names() == ["a.json", MANIFEST_NAME, "weights.bin"]
    assert folder.read("a.json") == FILES["a.json"]
    buffer = bytearray(100)
    folder.open("weights.bin").read_into(memoryview(buffer), 5000)
    assert bytes(buffer) == FILES["weights.bin"][5000:5100]
    assert not list(case.folder.glob("second/**/weights.bin"))


def test_the_place_is_opened_as_the_user_writes_it(case: Case, tmp_path: Path) -> None:
    handle = write(case.open())
    places: list[str | Path] = (
        [case.place] if case.is_s3 else [case.place, f"file://{case.place}", Path(case.place)]
    )
    for place in places:
        store = open_store(place, tmp_path / "downloads")
        assert store.find("stage", KEY) == handle
        assert store.location == case.place


def test_a_place_of_another_kind_is_refused() -> None:
    with pytest.raises(InvalidInput, match="gs://bucket"):
        open_store("gs://bucket/prefix")
