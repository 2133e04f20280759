"""JSON that lies on disk: what is no plain object is refused in one line, by everyone who reads."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bipline.base.errors import InvalidInput
from bipline.storage import strict_json
from bipline.storage.directory import Journal, atomic_directory, is_finished
from bipline.storage.local_store import LocalStore
from bipline.storage.manifest import read_manifest
from bipline.storage.strict_json import parse, parse_object, read_json
from bipline.storage.work import claim
from bipline.values.plan import read_plan
from bipline.values.resolution import read_resolution

KEY = "0" * 40
DAMAGED = {
    "nothing": b"",
    "half": b'{"key": "a", "fi',
    "a list": b"[1]",
    "a word": b'"x"',
    "null": b"null",
    "a key twice": b'{"key": 1, "key": 2}',
    "a key twice inside": b'{"a": {"b": 1, "b": 1}}',
    "not a number": b'{"a": NaN}',
    "infinity": b'{"a": [-Infinity]}',
    "beyond every number": b'{"a": 1e999}',
    "deep": b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "a long whole number": b'{"a": ' + b"9" * 5000 + b"}",
    "another encoding": '{"a": "é"}'.encode("utf-16"),
    "a broken sign": b'{"a": "\xff"}',
    "half a pair": b'{"a": "\\ud800"}',
    "html": b"<!DOCTYPE html><html><body>Sign in</body></html>",
    "two values": b'{"a": 1} {"a": 1}',
    "a byte order mark": b'\xef\xbb\xbf{"a": 1}',
    "zeros": b"\0" * 100,
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_damaged_json_is_one_line(content: bytes) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_object(content, "place", "journal")
    line = str(caught.value)
    assert line.startswith("place: not a journal: ") and "\n" not in line
    assert line.endswith("; delete it and run again") and len(line) < 300


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.text()
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)  # fmt: skip


@given(VALUES)
def test_what_python_writes_is_read_as_it_was(value: object) -> None:
    assert parse(json.dumps(value, allow_nan=False).encode()) == value


def test_a_file_above_the_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strict_json, "LARGEST_BYTES", 1 << 20)
    with pytest.raises(InvalidInput, match="larger than 1 MB"):
        parse_object(b'{"a": "%s"}' % (b"x" * (1 << 20)), "place", "journal")


def take_up(path: Path) -> object:
    with atomic_directory(path.parent / "out", "test", path, "key"):
        return None


def finished(path: Path) -> object:
    final = path.parent / "final"
    with atomic_directory(final, "test") as writer:
        (writer.path / "a").write_bytes(b"1")
    return is_finished(final, path)


def taken_cost(path: Path) -> object:
    store = LocalStore(path.parent)
    place = path.parent / "stage" / f"{KEY[:32]}.cost.json"
    place.parent.mkdir()
    shutil.copy(path, place)
    return store.read_cost("stage", KEY)


def claimed(path: Path) -> object:
    folder = path.parent / "folder"
    folder.mkdir()
    (folder / "progress.json").write_text("{}")
    shutil.copy(path, folder / "key.json")
    return claim(folder, {"a": 1})


def manifest(path: Path) -> object:
    folder = path.parent / "folder"
    folder.mkdir()
    shutil.copy(path, folder / "manifest.json")
    return read_manifest(folder)


DOORS = (take_up, finished, taken_cost, claimed, manifest, read_plan, read_resolution)


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("case", ["half", "a key twice", "not a number", "deep", "html", "null"])
def test_every_record_of_ours_names_its_file(
    door: Callable[[Path], object], case: str, tmp_path: Path
) -> None:
    path = tmp_path / "damaged.json"
    path.write_bytes(DAMAGED[case])
    with pytest.raises(InvalidInput, match=r"\.json: not a ") as caught:
        door(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "files",
    [
        {"../outside": {"size": 1, "sha256": "0" * 64}},
        {"/etc/passwd": {"size": 1, "sha256": "0" * 64}},
        {"a": {"size": -1, "sha256": "0" * 64}},
        {"a": {"size": 1, "sha256": "x"}},
        {"a": 1},
        [],
    ],
)
def test_a_journal_of_other_files_is_refused(files: object, tmp_path: Path) -> None:
    path = tmp_path / "journal.json"
    path.write_text(json.dumps({"key": "k", "files": files, "digest": ""}))
    with pytest.raises(InvalidInput, match=r"journal\.json: not a journal: .*; delete it"):
        Journal(path, "k").take_up(tmp_path)


def test_a_pipe_is_no_file_to_wait_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "plan.json")
    with pytest.raises(InvalidInput, match=r"plan\.json: the plan cannot be read: Is a pipe"):
        read_json(tmp_path / "plan.json", "plan")
