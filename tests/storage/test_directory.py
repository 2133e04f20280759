"""Atomic directories: whole or absent, one writer at a time, no leftovers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bipline.base.errors import InvalidInput
from bipline.storage.directory import atomic_directory
from bipline.storage.locks import locked
from bipline.storage.manifest import verify_directory

WRITE_SLOWLY = """
import sys, time
from pathlib import Path
from bipline.storage.directory import atomic_directory
with atomic_directory(Path(sys.argv[1]), "test") as writer:
    (writer.path / "half").write_text("written")
    print("inside", flush=True)
    time.sleep(60)
"""


def start_slow_writer(out: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", WRITE_SLOWLY, str(out)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "inside\n"
    return process


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), atomic_directory(tmp_path / "out", "test") as writer:
        (writer.path / "a").write_text("x")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_occupied_output_is_refused_and_untouched(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("keep")
    with pytest.raises(InvalidInput, match="not empty"), atomic_directory(tmp_path / "out", "test"):
        pass
    assert (tmp_path / "out" / "mine").read_text() == "keep"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_empty_output_directory_is_used(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with atomic_directory(tmp_path / "out", "test") as writer:
        (writer.path / "a").write_text("x")
    assert verify_directory(tmp_path / "out").files.keys() == {"a"}


def test_a_directory_that_moved_while_it_was_locked_is_not_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its holder ended just then, and nobody else would be kept out of the old name."""
    place = tmp_path / "place"
    place.mkdir()
    monkeypatch.setattr(
        "bipline.storage.locks.fcntl.flock", lambda *_: place.rename(tmp_path / "moved")
    )
    with pytest.raises(InvalidInput, match="refused"), locked(place, "refused"):
        pass


def test_second_writer_is_refused_and_killed_writer_leaves_a_way(tmp_path: Path) -> None:
    process = start_slow_writer(tmp_path / "out")
    try:
        with (
            pytest.raises(InvalidInput, match="another process"),
            atomic_directory(tmp_path / "out", "test"),
        ):
            pass
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert not (tmp_path / "out").exists()
    deadline = time.monotonic() + 10
    with atomic_directory(tmp_path / "out", "test") as writer:
        assert time.monotonic() < deadline
        assert list(writer.path.iterdir()) == []
        (writer.path / "whole").write_text("y")
    assert verify_directory(tmp_path / "out").files.keys() == {"whole"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
