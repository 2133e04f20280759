"""What lies in a Store: every directory with its size, and what nobody points at removed."""

from __future__ import annotations

import json
import os
import sqlite3
from pathlib import Path

import pytest

from bipline.base.errors import EnvironmentFailure, InvalidInput
from bipline.delivery.registries import registered_runs
from bipline.delivery.registries.registered_runs import RegisteredVersion
from bipline.stages.inventory import entries_of
from bipline.stages.storing import DATABASE, ROOT, prune_stored, stored
from bipline.storage.directory import write_text
from bipline.storage.local_store import LocalStore
from bipline.storage.locks import locked
from bipline.storage.manifest import read_manifest
from tests.command import run

# Of each stage key: which runs point at it.
POINTED = {"1" * 64: ["old"], "2" * 64: ["old", "registered"], "3" * 64: [], "4" * 64: ["killed"]}
# When the runs began: after everything here was made.
LATER = "2999-01-01 00:00:00.000000"
STATUS = {"old": "completed", "registered": "completed", "killed": "running"}
TABLES = """
CREATE TABLE run_metadata (id TEXT, key TEXT, value TEXT);
CREATE TABLE run_metadata_resource (resource_id TEXT, run_metadata_id TEXT);
CREATE TABLE step_run (id TEXT, pipeline_run_id TEXT);
CREATE TABLE pipeline_run (id TEXT, name TEXT, status TEXT, created TEXT);
"""


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A state folder with four entries, unfinished work, and a database as ZenML keeps it."""
    state = tmp_path / "state"
    store = LocalStore(state / ROOT)
    for key in POINTED:
        with store.write("score", key, "statistics") as writer:
            write_text(writer.path / "sums", key * 10)
        store.write_cost("score", key, {"seconds": 1})
    work = store.place("prune", "5" * 64).with_suffix(".work")
    work.mkdir(parents=True)
    (work / "part.json").write_text("{}")
    database = state / DATABASE
    database.parent.mkdir(parents=True)
    with sqlite3.connect(database) as connection:
        connection.executescript(TABLES)
        for name, status in STATUS.items():
            values = (name, name, status, LATER)
            connection.execute("INSERT INTO pipeline_run VALUES (?, ?, ?, ?)", values)
            connection.execute("INSERT INTO step_run VALUES (?, ?)", (name, name))
        for key, runs in POINTED.items():
            value = (key, "stage_key", json.dumps(key))
            connection.execute("INSERT INTO run_metadata VALUES (?, ?, ?)", value)
            for run in runs:
                connection.execute("INSERT INTO run_metadata_resource VALUES (?, ?)", (run, key))
    return state


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> str:
    """A registry with a version that the run ``registered`` made."""
    found = [RegisteredVersion("tiny 1 @production", "0" * 64, "registered")]
    monkeypatch.setattr(registered_runs, "registered_runs", lambda address: found)
    return "somewhere"


def left(state: Path) -> set[str]:
    return {entry.key[0] for entry in entries_of(state / ROOT)}


def test_every_entry_is_told_with_size_age_and_who_points_at_it(state: Path, registry: str) -> None:
    found = {entry.key[0]: entry for entry in stored(state, registry).entries}
    assert {key: list(entry.runs) for key, entry in found.items() if key != "5"} == {
        key[0]: runs for key, runs in POINTED.items()
    }
    assert found["2"].versions == ("tiny 1 @production",) and not found["1"].versions
    assert [key for key, entry in found.items() if not entry.finished] == ["5"]
    place = state / ROOT / "score" / found["1"].key
    assert found["1"].digest == read_manifest(place).digest
    assert found["1"].bytes == sum(path.stat().st_size for path in place.iterdir())


def test_what_nobody_points_at_goes_and_the_rest_verifies(state: Path) -> None:
    told = prune_stored(state, None, keep_registered=False, dry_run=True)
    assert left(state) == set("12345"), "a dry run removes nothing"
    done = prune_stored(state, None, keep_registered=False, dry_run=False)
    assert told.removed == done.removed == (f"score/{'3' * 32}",)
    assert left(state) == set("1245") and done.freed_bytes > 640
    assert not list((state / ROOT / "score").glob(f"{'3' * 32}*")), "nor what it cost"
    again = prune_stored(state, None, keep_registered=False, dry_run=False)
    assert again.removed == ()


def test_registered_versions_and_runs_that_have_not_ended_keep_theirs(
    state: Path, registry: str
) -> None:
    prune_stored(state, registry, keep_registered=True, dry_run=False)
    assert left(state) == set("245")


def test_a_package_is_kept_by_its_digest_too(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = read_manifest(state / ROOT / "score" / ("3" * 32)).digest
    found = [RegisteredVersion("tiny 2", digest, "")]
    monkeypatch.setattr(registered_runs, "registered_runs", lambda address: found)
    prune_stored(state, "somewhere", keep_registered=True, dry_run=False)
    assert left(state) == set("345")


def test_nothing_goes_while_a_run_is_in_progress(state: Path, registry: str) -> None:
    with locked(state, "taken"), pytest.raises(InvalidInput, match="a run is using"):
        prune_stored(state, registry, keep_registered=False, dry_run=False)
    assert left(state) == set("12345")


def test_without_a_version_to_keep_nothing_goes(state: Path) -> None:
    with pytest.raises(InvalidInput, match="--keep-registered: no registered version"):
        prune_stored(state, None, keep_registered=True, dry_run=False)
    assert left(state) == set("12345")


@pytest.mark.parametrize("damage", ["missing", "no database", "other tables"])
def test_where_nobody_knows_who_needs_what_nothing_goes(state: Path, damage: str) -> None:
    database = state / DATABASE
    database.unlink()
    if damage == "no database":
        database.write_text("this is none, and long enough to be looked at" * 9)
    if damage == "other tables":
        sqlite3.connect(database).close()
        database.touch()
    with pytest.raises(EnvironmentFailure):
        prune_stored(state, None, keep_registered=False, dry_run=False)
    assert left(state) == set("12345")


def test_only_bytes_of_its_own_are_freed(state: Path) -> None:
    store = state / ROOT / "score"
    os.link(store / ("3" * 32) / "sums", state / "elsewhere")
    [entry] = [each for each in entries_of(state / ROOT) if each.key[0] == "3"]
    assert entry.bytes - entry.own_bytes == 640
    done = prune_stored(state, None, keep_registered=False, dry_run=False)
    assert done.freed_bytes == entry.own_bytes


def test_what_a_killed_run_may_have_made_stays(state: Path, registry: str) -> None:
    """It was killed after the directory was whole, before anything pointed at it."""
    began = "2000-01-01 00:00:00.000000"
    with sqlite3.connect(state / DATABASE) as connection:
        connection.execute("UPDATE pipeline_run SET created = ? WHERE name = 'killed'", (began,))
    connection.close()
    assert not prune_stored(state, registry, keep_registered=False, dry_run=False).removed
    assert left(state) == set("12345")


def test_a_damaged_manifest_is_listed_and_removed(state: Path) -> None:
    path = state / ROOT / "score" / ("3" * 32) / "manifest.json"
    path.chmod(0o644)
    path.write_text("{")
    kinds = {entry.key[0]: entry.kind for entry in entries_of(state / ROOT)}
    assert kinds["3"] == "damaged"
    assert prune_stored(state, None, keep_registered=False, dry_run=False).removed
    assert left(state) == set("1245")


def test_the_commands_say_it(state: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = state.parent / "out.json"
    said = ""
    for arguments in (["list"], ["prune", "--dry-run", "--json", out], ["prune"]):
        outcome = run(capfd, "store", *arguments, "--state", state)
        assert outcome.code == 0
        said += outcome.output
    assert "unfinished work" in said and "nobody" in said and "killed" in said
    assert "1 of 5 would be removed" in said and "1 of 5 removed" in said
    assert json.loads(out.read_text())["removed"] == [f"score/{'3' * 32}"]
    assert left(state) == set("1245")


@pytest.mark.parametrize("command", ["list", "prune"])
def test_a_folder_without_a_store_is_refused_and_not_made(
    tmp_path: Path, command: str, capfd: pytest.CaptureFixture[str]
) -> None:
    away = tmp_path / "away"
    outcome = run(capfd, "store", command, "--state", away)
    outcome.assert_one_line(2, "no Store of pipeline runs lies there")
    assert not away.exists()
