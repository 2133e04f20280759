"""Ctrl-C and kill -9 in the middle of the work: the old state stays, a rerun succeeds."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.command import contents
from tests.conftest import ASSETS


def start(tmp_path: Path, samples: int) -> subprocess.Popen[str]:
    """``bipline prune`` of the embedded model, with SIGINT as a terminal would have it."""
    arguments = [
        "prune", ASSETS / "reference-llm", "--ratio", "0.3", "--samples", samples,
        "--calibration", ASSETS / "texts" / "calibration.txt", "--out", tmp_path / "out",
        "--state", tmp_path / "state", "--criterion", "llm-bip-glu",
    ]  # fmt: skip
    return subprocess.Popen(
        [sys.executable, "-m", "bipline", *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip


def wait_for_a_block(folder: Path, process: subprocess.Popen[str]) -> None:
    """Until the first block is recorded, so that the forward pass is under way."""
    while not list(folder.glob("out.work/score/*.work/block-0000.json")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


@pytest.mark.parametrize(
    "how", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)]
)
@pytest.mark.slow
def test_stopped_in_the_middle_of_scoring(tmp_path: Path, how: signal.Signals) -> None:
    process = start(tmp_path, samples=64)
    wait_for_a_block(tmp_path, process)
    process.send_signal(how)
    _, errors = process.communicate(timeout=60)
    if how is signal.SIGINT:
        assert process.returncode == 130
        assert errors.strip() == "error: interrupted; nothing was left half written"
    assert {path.name for path in tmp_path.iterdir()} == {"state", "out.work"}
    screen, errors = (again := start(tmp_path, samples=64)).communicate(timeout=120)
    assert again.returncode == 0, errors
    assert re.search(r"going on after block \d of 8", screen)
    assert "manifest.json" in contents(tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"state", "out"}


@pytest.mark.slow
def test_stopped_before_anything_was_done_leaves_nothing(tmp_path: Path) -> None:
    process = start(tmp_path, samples=64)
    assert process.stdout is not None
    while "tokenise" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert {path.name for path in tmp_path.iterdir()} == {"state"}


@pytest.mark.slow
def test_second_process_on_one_output_is_refused(tmp_path: Path) -> None:
    process = start(tmp_path, samples=64)
    wait_for_a_block(tmp_path, process)
    process.send_signal(signal.SIGSTOP)  # or it might be done before the second one has started
    second = start(tmp_path, samples=64)
    _, errors = second.communicate(timeout=120)
    process.send_signal(signal.SIGCONT)
    assert second.returncode == 2
    assert "another process is working on this output" in errors
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert "manifest.json" in contents(tmp_path / "out")
