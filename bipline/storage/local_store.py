"""A Store in a local directory, whose outputs may lie where the user wants them.

Below ``ROOT/STAGE`` lie, for a key of which the first 32 digits are the name: ``KEY`` the finished
directory, ``KEY.work`` unfinished work, ``KEY.journal.json`` which files of an unfinished directory
are whole, ``KEY.cost.json`` what making it cost. A stage named in ``outputs`` has its finished
directory at that path instead, and its journal stays: it is the receipt that this key wrote it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from bipline.storage.directory import (
    DirectoryWriter,
    atomic_directory,
    is_finished,
    write_text,
)
from bipline.storage.folder import Folder, open_folder
from bipline.storage.handle import Handle, open_directory
from bipline.storage.manifest import MANIFEST_NAME, Manifest
from bipline.storage.strict_json import read_json
from bipline.storage.work import work_directory

NAME_DIGITS = 32


class LocalStore:
    """A Store below ``root``; ``outputs`` maps stages to directories of the user."""

    def __init__(self, root: Path, outputs: Mapping[str, Path] | None = None) -> None:
        self.root = root
        self.outputs = dict(outputs or {})

    @property
    def location(self) -> str:
        """The root as it was given."""
        return str(self.root)

    def place(self, stage: str, key: str) -> Path:
        """Where the output of a stage with this key belongs."""
        return self.outputs.get(stage) or self.root / stage / key[:NAME_DIGITS]

    def find(self, stage: str, key: str) -> Handle | None:
        """The finished output of a stage with this key, or None.

        A directory of the user counts only when the journal says that this key wrote it.
        """
        place = self.place(stage, key)
        if stage in self.outputs:
            finished = is_finished(place, self._beside(stage, key, "journal.json"), key)
        else:
            finished = (place / MANIFEST_NAME).is_file()
        return Handle.to_directory(place) if finished else None

    @contextmanager
    def write(self, stage: str, key: str, kind: str) -> Iterator[DirectoryWriter]:
        """Write the output of a stage atomically; the Store's own files are then read-only.

        Files that a killed run recorded by ``add_hashed`` under this key are kept.
        Raises InvalidInput when another process writes it, or when a directory of the user holds
        something else.
        """
        place, journal = self.place(stage, key), self._beside(stage, key, "journal.json")
        own = stage not in self.outputs
        with atomic_directory(place, kind, journal, key, seal if own else None) as writer:
            writer.shares = own
            yield writer
        if own:
            journal.unlink(missing_ok=True)

    def work(self, stage: str, key: str) -> AbstractContextManager[Path]:
        """The work directory of this key (see :func:`bipline.storage.work.work_directory`)."""
        return work_directory(self._beside(stage, key, "work"))

    def open(self, handle: Handle) -> Path:
        """The directory of a handle, hashed and compared. Raises StoredGone, Refused."""
        return open_directory(handle)

    def folder(self, handle: Handle) -> Folder:
        """The directory of a handle, to be read by ranges."""
        return open_folder(handle.location)

    def discard(self, stage: str, key: str) -> None:
        """Remove the output of this key; a directory that another key wrote stays."""
        place = self.place(stage, key).absolute()
        # What lies in the Store's own folder is this key's, though it be damaged.
        own = stage not in self.outputs and (place / MANIFEST_NAME).is_file()
        if not own and self.find(stage, key) is None:
            return
        # The name of a half written directory: what a kill leaves here, the next writer clears.
        leaving = place.with_name(f".{place.name}.partial")
        shutil.rmtree(leaving, ignore_errors=True)
        self._beside(stage, key, "journal.json").unlink(missing_ok=True)
        place.rename(leaving)
        shutil.rmtree(leaving)

    def write_cost(self, stage: str, key: str, cost: dict[str, Any]) -> None:
        """Keep what making the output cost, beside it."""
        path = self._beside(stage, key, "cost.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, cost_text(cost))

    def read_cost(self, stage: str, key: str) -> dict[str, Any] | None:
        """What making the output cost, or None where nothing was kept."""
        path = self._beside(stage, key, "cost.json")
        return read_json(path, "cost") if path.is_file() else None

    def forget_cost(self, stage: str, key: str) -> None:
        """Remove what was kept of a cost."""
        self._beside(stage, key, "cost.json").unlink(missing_ok=True)

    def _beside(self, stage: str, key: str, suffix: str) -> Path:
        return self.root / stage / f"{key[:NAME_DIGITS]}.{suffix}"


def seal(directory: Path, _manifest: Manifest) -> None:
    """Make every file below a directory read-only."""
    for path in directory.rglob("*"):
        if path.is_file():
            path.chmod(0o444)


def cost_text(cost: dict[str, Any]) -> str:
    """The text of a cost file."""
    return json.dumps(cost, indent=1, sort_keys=True, allow_nan=False) + "\n"
