"""``docs/python.md`` runs from top to bottom, and leaves the process as it was."""

from __future__ import annotations

import logging
import os
import random
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import bipline

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
PIPELINES = "## Pipelines"
# Set by PyTorch when a part of it is imported.
OF_TORCH = {"TORCHINDUCTOR_CACHE_DIR"}


def blocks(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that looks like a checkout, and is where the process works."""
    for name in ("assets", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def process_state() -> dict[str, Any]:
    """What a library must leave to the program that calls it."""
    return {
        "environment": {k: v for k, v in os.environ.items() if k not in OF_TORCH},
        "folder": Path.cwd(),
        "threads": torch.get_num_threads(),
        "dtype": torch.get_default_dtype(),
        "gradients": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "random": random.getstate(),
        "torch random": torch.get_rng_state().tolist(),
        "signals": {name: signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM)},
        "logging": (logging.root.level, list(logging.root.handlers), logging.root.disabled),
        "mask": os.umask(os.umask(0o022)),
    }


def run(block: str, own: dict[str, Any]) -> None:
    exec(compile(block, "docs/python.md", "exec"), own)


@pytest.mark.slow
def test_the_page_runs_and_changes_nothing_of_the_process(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, own = process_state(), dict[str, Any]()
    for block in blocks(PAGE.partition(PIPELINES)[0]):
        run(block, own)
        assert process_state() == before, f"changed by:\n{block}"
    printed = capsys.readouterr()
    assert printed.err == ""
    assert "exit" not in printed.out
    assert own["result"].parameters.after < own["result"].parameters.before
    assert own["headings"].seen == ["score", "allocate", "prune"]
    assert not (checkout / "build" / "never").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_pipelines_of_the_page_run(checkout: Path) -> None:
    script = checkout / "page.py"
    first = blocks(PAGE)[0]
    script.write_text("\n".join([first, *blocks(PAGE.partition(PIPELINES)[2])]), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(script)], cwd=checkout, env=environment, text=True,
        capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "from-python 1" in done.stdout


def test_every_public_function_and_error_is_on_the_page() -> None:
    for name in bipline.__all__:
        assert f"bipline.{name}" in PAGE, name
