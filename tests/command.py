"""Run the command line inside the test's process and look at what a user would see."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest

from bipline.face.cli import main


@dataclass(frozen=True)
class Outcome:
    """Exit code and everything the command printed."""

    code: int
    output: str
    errors: str

    def assert_one_line(self, code: int, *words: str) -> None:
        """The command failed with this code and said so in one line that holds the words."""
        assert self.code == code, self
        assert "Traceback" not in self.output + self.errors
        lines = self.errors.strip().splitlines()
        assert len(lines) == 1, self
        assert lines[0].startswith("error: ")
        for word in words:
            assert word in lines[0]


def run(capfd: pytest.CaptureFixture[str], *arguments: str | Path) -> Outcome:
    """Run ``bipline`` with these arguments."""
    capfd.readouterr()
    code = 0
    with mock.patch.object(sys, "argv", ["bipline", *map(str, arguments)]):
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
    captured = capfd.readouterr()
    return Outcome(code, captured.out, captured.err)


def typed(
    folder: Path, environment: Mapping[str, str], *arguments: str | Path
) -> subprocess.CompletedProcess[str]:
    """What a user types in a folder, in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "bipline", *map(str, arguments)], cwd=folder, env=environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def contents(directory: Path) -> dict[str, bytes]:
    """Every file below a directory, hidden ones too: to see that nothing was left behind."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }
