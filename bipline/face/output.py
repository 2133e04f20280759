"""What commands leave behind: a log file, and results for other programs."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


def log_file(state: Path, command: str) -> Path:
    """Where a command that starts now writes its log."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    return state / "logs" / f"{command}-{stamp}.log"


def write_json(path: Path | None, value: dict[str, Any]) -> None:
    """Write a result as indented JSON, where it was asked for."""
    if path is not None:
        from bipline.storage.directory import write_text

        write_text(path, json.dumps(value, indent=1, sort_keys=True) + "\n")
