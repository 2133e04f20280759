"""The work directory: what a killed run leaves for the next one to go on from.

It lies beside the output (``OUT.work``) or where the user says, holds a lock while a process
works in it, and remembers what the work is: a run with other inputs, options or code is refused
there and told what differs. When the work is done, or cannot be done, it is removed.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bipline.base.errors import InvalidInput, Refused
from bipline.storage.directory import environment_failure, write_text
from bipline.storage.locks import locked
from bipline.storage.strict_json import read_json

KEY_NAME = "key.json"
MARKER_NAME = ".bipline-work"
Key = Mapping[str, Any]


@contextmanager
def work_directory(path: Path) -> Iterator[Path]:
    """Hold a work directory for the length of the block; remove it at the end.

    When the block fails, what is finished stays for the next run, unless nothing was finished
    before and the input itself turned out to be unusable.
    Raises InvalidInput when another process holds it, or when ``path`` holds files that no run of
    this project wrote.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with locked(path, f"{path}: another process is working on this output"):
            _refuse_foreign(path)
            taken_up = has_progress(path)
            try:
                yield path
            except BaseException as error:
                unusable = isinstance(error, (InvalidInput, Refused)) and not taken_up
                if unusable or not has_progress(path):
                    shutil.rmtree(path, ignore_errors=True)
                raise
            shutil.rmtree(path)
    except OSError as error:
        raise environment_failure(error) or error from None


def has_progress(path: Path) -> bool:
    """Whether anything in a work directory is worth going on from."""
    return any(file.is_file() and file.name != KEY_NAME for file in path.rglob("*.json"))


def claim(folder: Path, key: Key) -> None:
    """Make ``folder`` the place of this work, or take up what is there.

    Raises InvalidInput when it holds finished parts of other work, naming every field that
    differs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / KEY_NAME
    if path.is_file() and has_progress(folder):
        old = read_json(path, "key of unfinished work", f"delete {folder}")
        differing = _differences(old, dict(key))
        if differing:
            raise InvalidInput(
                f"{folder}: holds unfinished work with other inputs: {'; '.join(differing)}; "
                "run with the same to go on, or delete it to start again"
            )
        return
    write_text(path, json.dumps(dict(key), indent=1, sort_keys=True) + "\n")


def _differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    return [
        f"{name} was {_short(old.get(name))}, is {_short(new.get(name))}"
        for name in sorted(set(old) | set(new))
        if old.get(name) != new.get(name)
    ]


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 40 else f"{text[:12]}..."


def _refuse_foreign(path: Path) -> None:
    marker = path / MARKER_NAME
    if not marker.is_file():
        if any(path.iterdir()):
            raise InvalidInput(f"{path}: holds files that are no work of bipline; choose another")
        marker.touch()
