"""What commands leave behind: a log file, and results for other programs."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bipline.base.errors import InvalidInput
from bipline.storage.places import Place, Use, check_places
from bipline.storage.strict_json import read_json

COMMAND = "command"


def log_file(state: Path, command: str) -> Path:
    """Where a command that starts now writes its log.

    Raises InvalidInput for a state folder that cannot be one.
    """
    check_places([Place("--state", state, Use.STATE)])
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    return state / "logs" / f"{command}-{stamp}.log"


def write_json(path: Path | str | None, command: str, value: dict[str, Any]) -> None:
    """Write a command's result as indented JSON, where it was asked for."""
    if path is not None:
        from bipline.storage.directory import write_text

        text = json.dumps({COMMAND: command, **value}, indent=1, sort_keys=True)
        write_text(Path(path), text + "\n")


def is_result(command: str) -> Callable[[Path], bool]:
    """Whether a file is the JSON that an earlier run of a command wrote."""

    def check(path: Path) -> bool:
        try:
            return read_json(path, "result").get(COMMAND) == command
        except InvalidInput:
            return False

    return check
