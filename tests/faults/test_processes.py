"""``--processes 2``: the bits of one; errors are the command's own; nobody outlives the parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.command import contents
from tests.compression.test_calibrate import prose


def start(model: Path, folder: Path, processes: int, samples: int = 40) -> subprocess.Popen[str]:
    (folder / "text.txt").write_text(prose(1) * 2)
    arguments = [
        "prune", model, "--ratio", "0.3", "--criterion", "llm-bip-glu", "--seqlen", "16",
        "--calibration", folder / "text.txt", "--samples", samples, "--processes", processes,
        "--out", folder / f"out-{processes}", "--statistics", folder / f"sums-{processes}",
        "--state", folder / "state",
    ]  # fmt: skip
    return subprocess.Popen(
        [sys.executable, "-m", "bipline", *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def performing(folder: Path) -> list[int]:
    """The processes whose command line names this folder's work, torchrun among them."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            words = (place / "cmdline").read_bytes()
        except OSError:  # it ended meanwhile
            continue
        if b"bipline.stages.processes" in words and os.fsencode(folder) in words:
            found.append(int(place.name))
    return found


@pytest.mark.slow
def test_two_processes_give_the_bytes_of_one(llama: Path, tmp_path: Path) -> None:
    for processes in (1, 2):
        screen, errors = (run := start(llama, tmp_path, processes)).communicate(timeout=200)
        assert run.returncode == 0, errors
    assert "2 processes share the windows" in screen
    assert not errors, "what torchrun says goes to the log"
    for name in ("out", "sums"):
        assert contents(tmp_path / f"{name}-1") == contents(tmp_path / f"{name}-2")


@pytest.mark.slow
def test_an_error_of_a_process_is_the_commands_own(llama: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for path in llama.iterdir():
        (model / path.name).write_bytes(path.read_bytes())
    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = torch.nan
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    _, errors = (run := start(model, tmp_path, 2)).communicate(timeout=200)
    assert run.returncode == 2
    assert errors.startswith("error: ") and len(errors.strip().splitlines()) == 1
    assert "layers.1.mlp.up_proj.weight holds NaN" in errors
    assert not list(tmp_path.glob("*out*"))


def wait_for(happened: Callable[[], bool], seconds: float, otherwise: str) -> None:
    """Look again and again, for machines that have other things to do."""
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.timeout(1000)
def test_processes_end_with_a_killed_parent(llama: Path, tmp_path: Path) -> None:
    run = start(llama, tmp_path, 2)

    def started() -> bool:
        assert run.poll() is None, run.communicate()
        return len(performing(tmp_path)) >= 3  # torchrun and two of its own

    wait_for(started, 300, "the processes never began")
    run.send_signal(signal.SIGKILL)
    run.wait(timeout=10)
    wait_for(lambda: not performing(tmp_path), 200, "processes were left behind")
    _, errors = (again := start(llama, tmp_path, 2)).communicate(timeout=400)
    assert again.returncode == 0, errors
    assert not list(tmp_path.glob("*.work"))
