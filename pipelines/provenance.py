"""Where a run's code came from: commit, uncommitted changes, constraints, library versions."""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path

from bipline.base.code import git
from bipline.storage.digests import digest_file
from bipline.storage.stage_key import PROJECT_ROOT, library_versions

UNKNOWN = "unknown"


def provenance(root: Path = PROJECT_ROOT) -> dict[str, str]:
    """What a run logs about its own code, by dotted name."""
    changes = git(root, "status", "--porcelain")
    constraints = root / "constraints.txt"
    libraries = {**library_versions(), "zenml": version("zenml"), "mlflow": version("mlflow")}
    return {
        "git.commit": git(root, "rev-parse", "HEAD") or UNKNOWN,
        "git.dirty": UNKNOWN if changes is None else str(bool(changes)).lower(),
        "constraints.sha256": digest_file(constraints) if constraints.is_file() else UNKNOWN,
        "python": platform.python_version(),
        **{f"library.{name}": found for name, found in libraries.items()},
    }
