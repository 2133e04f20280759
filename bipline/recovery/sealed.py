"""Folders of the private work directory, listed with their digests once they are whole.

The Trainer's checkpoints hold pickles. They never leave the work directory, and none is read
again unless every file of it is the one that was written.
"""

from __future__ import annotations

import json
from pathlib import Path

from bipline.base.errors import InvalidInput, Refused
from bipline.storage.digests import digest_file
from bipline.storage.directory import write_text
from bipline.storage.strict_json import read_json

SEAL = "digests.json"


def seal(folder: Path, **told: int) -> None:
    """Write the list of a folder's files, last; ``told`` must be the same when it is read."""
    files = {name: digest_file(folder / name) for name in _names(folder)}
    write_text(folder / SEAL, json.dumps({**told, "files": files}, indent=1, sort_keys=True) + "\n")


def is_sealed(folder: Path) -> bool:
    """Whether a folder was written to its end."""
    return (folder / SEAL).is_file()


def hold_to_seal(folder: Path, **told: int) -> None:
    """Raise Refused where a file of a sealed folder is not the one that was written.

    Raises InvalidInput where what was told differs, such as the number of processes.
    """
    listed = read_json(folder / SEAL, "list of a checkpoint", f"delete {folder.parent}")
    for name, value in told.items():
        if listed.get(name) != value:
            raise InvalidInput(
                f"{folder}: written with {name} {listed.get(name)}, now {value}; go on with the "
                f"same, or delete {folder.parent} to start again"
            )
    found = {name: digest_file(folder / name) for name in _names(folder)}
    for name in sorted(listed["files"].keys() | found.keys()):
        if listed["files"].get(name) != found.get(name):
            raise Refused(
                f"{folder / name}: changed since it was written, and is not read; delete "
                f"{folder.parent} to start again"
            )


def _names(folder: Path) -> list[str]:
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and path.relative_to(folder).as_posix() != SEAL
    )
