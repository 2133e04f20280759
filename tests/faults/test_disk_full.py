"""A full disk: exit code 3, one line, nothing half written, and a rerun with room succeeds."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.command import run
from tests.compression.test_calibrate import prose


@pytest.fixture
def small_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 64 kB, or of the test's parameter; only a privileged user can mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    size = getattr(request, "param", "64k")
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)]
    mounted = subprocess.run(command, capture_output=True, check=False)
    if mounted.returncode:
        message = f"a tmpfs cannot be mounted here: {mounted.stderr.decode().strip()}"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    try:
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("filled", [0, 30_000])
def test_prune_onto_a_full_disk(
    capfd: pytest.CaptureFixture[str], llama: Path, tmp_path: Path, small_disk: Path, filled: int
) -> None:
    (tmp_path / "text.txt").write_text(prose(1))
    (small_disk / "other").write_bytes(b"x" * filled)
    arguments = [
        "prune", llama, "--ratio", "0.3", "--calibration", tmp_path / "text.txt",
        "--samples", "4", "--seqlen", "16", "--state", tmp_path / "state",
        "--criterion", "llm-bip-glu",
    ]  # fmt: skip
    outcome = run(capfd, *arguments, "--out", small_disk / "out")
    outcome.assert_one_line(3, "no space left")
    assert [path.name for path in small_disk.iterdir()] == ["other"]
    assert run(capfd, *arguments, "--out", tmp_path / "out").code == 0


def test_a_state_folder_that_cannot_be_one(
    capfd: pytest.CaptureFixture[str], llama: Path, tmp_path: Path
) -> None:
    (tmp_path / "state").write_text("a file where a folder should be")
    arguments = ["prune", llama, "--ratio", "0.3", "--out", tmp_path / "out"]
    run(capfd, *arguments, "--state", tmp_path / "state").assert_one_line(
        2, "--state", "is no folder"
    )


@pytest.mark.slow
@pytest.mark.parametrize("small_disk", ["200k", "2m", "8m"], indirect=True)
def test_pipeline_onto_a_full_disk(small_disk: Path) -> None:
    """MLflow's database, ZenML's database and a stored model are what does not fit, in turn."""
    arguments = ["demo", "--set", f"state={small_disk / 'state'}", "--set", "recover.enabled=false"]
    outcome = subprocess.run(
        [sys.executable, "-m", "bipline", *arguments], capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert outcome.returncode == 3, outcome
    assert len(outcome.stderr.strip().splitlines()) == 1
    assert "full" in outcome.stderr or "no space left" in outcome.stderr
    assert not list(small_disk.rglob(".*.partial"))
