"""A pipeline killed in the middle of its stages ends, run again, with the same package."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.pipeline.conftest import configuration


def start(config: Path, state: Path) -> subprocess.Popen[str]:
    arguments = [
        "compress",
        config,
        "--set",
        f"state={state}",
        "--json",
        state.with_suffix(".json"),
    ]
    return subprocess.Popen(
        [sys.executable, "-m", "bipline", *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def kill_in(stage: str, config: Path, state: Path) -> None:
    """Run until this stage begins, and kill."""
    process = start(config, state)
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == stage:
            os.kill(process.pid, signal.SIGKILL)
            break
    process.communicate()
    assert process.returncode == -signal.SIGKILL, f"{stage} was never reached"


def finish(config: Path, state: Path) -> dict[str, object]:
    process = start(config, state)
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    summary: dict[str, object] = json.loads(state.with_suffix(".json").read_text())
    return summary


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_in_four_stages(llama: Path, folder: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    values = configuration(llama, folder).model_dump(mode="json", exclude={"state"})
    config.write_text(yaml.safe_dump(values))
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    for stage in ("score", "compensate", "recover", "export"):
        kill_in(stage, config, killed)
    survived, unbroken = finish(config, killed), finish(config, whole)
    assert survived["package"]["digest"] == unbroken["package"]["digest"]  # type: ignore[index]
    assert not list(killed.rglob(".*.partial"))
