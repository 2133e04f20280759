"""Which code runs: bipline's version, and the commit of the checkout it lies in."""

from __future__ import annotations

import os
import subprocess
from functools import cache
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def version() -> str:
    """The version. Asked by name: a stage's key must not take in all that the package imports."""
    return str(import_module("bipline").__version__)


@cache
def commit(root: Path = ROOT) -> str | None:
    """The commit of the checkout, with ``-dirty`` where files differ from it.

    None where the code lies in no checkout of its own: a repository around an installed copy is
    another project's.
    """
    if not (root / ".git").exists():
        return None
    return git(root, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def git(root: Path, *arguments: str) -> str | None:
    """What git answers, or None where there is no git or no repository."""
    command = ["git", "-C", str(root), *arguments]
    # A question about the tree must not lock the index against somebody who is committing.
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(  # noqa: S603
            command, capture_output=True, text=True, check=True, env=environment
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
