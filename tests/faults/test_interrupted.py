"""Ctrl-C and kill -9 in the middle of the work: the old state stays, a rerun succeeds."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.command import contents
from tests.conftest import ASSETS


def start(tmp_path: Path, samples: int) -> subprocess.Popen[str]:
    """``bipline prune`` of the embedded model, with SIGINT as a terminal would have it."""
    arguments = [
        "prune", ASSETS / "reference-llm", "--ratio", "0.3", "--samples", samples,
        "--calibration", ASSETS / "texts" / "calibration.txt", "--out", tmp_path / "out",
        "--state", tmp_path / "state",
    ]  # fmt: skip
    return subprocess.Popen(
        [sys.executable, "-m", "bipline.cli", *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip


def wait_for_scoring(process: subprocess.Popen[str]) -> None:
    """Until the calibration text is tokenised, so that the forward pass is under way."""
    assert process.stdout is not None
    assert "tokenise" in process.stdout.readline()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_stopped_in_the_middle_of_scoring(tmp_path: Path, how: signal.Signals) -> None:
    process = start(tmp_path, samples=380)
    wait_for_scoring(process)
    process.send_signal(how)
    _, errors = process.communicate(timeout=60)
    if how is signal.SIGINT:
        assert process.returncode == 130
        assert errors.strip() == "error: interrupted; nothing was left half written"
    assert [path.name for path in tmp_path.iterdir()] == ["state"]
    again = start(tmp_path, samples=8)
    _, errors = again.communicate(timeout=120)
    assert again.returncode == 0, errors
    assert "manifest.json" in contents(tmp_path / "out")
