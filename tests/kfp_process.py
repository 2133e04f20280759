"""Programs beside kfp, whose older libraries stand in a folder of their own in the environment."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.layers import ROOT

# `make environment` puts what infra/kubeflow/requirements.txt lists here.
FOLDER = Path(sys.prefix) / "kubeflow"


def kfp_environment(**more: str) -> dict[str, str]:
    """The environment of a process that finds kfp; its absence fails."""
    assert (FOLDER / "kfp").is_dir(), f"{FOLDER} has no kfp: make environment"
    paths = os.pathsep.join([str(FOLDER), str(ROOT)])
    return {**os.environ, "PYTHONPATH": paths, **more}


def run_with_kfp(program: str, *arguments: str | Path, folder: Path, **more: str) -> str:
    """What a program prints; it must end well."""
    command = [sys.executable, "-c", program, *map(str, arguments)]
    ended = subprocess.run(
        command, cwd=folder, env=kfp_environment(**more), capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout
