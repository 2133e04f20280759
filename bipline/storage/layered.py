"""A Store over another: what is found may lie in either, what is made lies in one's own."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from bipline.storage.directory import DirectoryWriter
from bipline.storage.folder import Folder
from bipline.storage.store import Handle, Store


class LayeredStore:
    """Finds in ``own``, then in ``shared``; writes and removes in ``own`` alone."""

    def __init__(self, shared: Store, own: Store) -> None:
        self._shared = shared
        self._own = own

    @property
    def location(self) -> str:
        """Where what is made lies."""
        return self._own.location

    def find(self, stage: str, key: str) -> Handle | None:
        """The finished output of a stage with this key, or None."""
        return self._own.find(stage, key) or self._shared.find(stage, key)

    def write(self, stage: str, key: str, kind: str) -> AbstractContextManager[DirectoryWriter]:
        """Write into one's own store."""
        return self._own.write(stage, key, kind)

    def work(self, stage: str, key: str) -> AbstractContextManager[Path]:
        """Work in one's own store."""
        return self._own.work(stage, key)

    def open(self, handle: Handle) -> Path:
        """A local directory with these bytes, hashed and compared."""
        return self._holder(handle).open(handle)

    def folder(self, handle: Handle) -> Folder:
        """The same to be read by ranges."""
        return self._holder(handle).folder(handle)

    def discard(self, stage: str, key: str) -> None:
        """Remove from one's own store."""
        self._own.discard(stage, key)

    def write_cost(self, stage: str, key: str, cost: dict[str, Any]) -> None:
        """Keep a cost in one's own store."""
        self._own.write_cost(stage, key, cost)

    def read_cost(self, stage: str, key: str) -> dict[str, Any] | None:
        """A cost that either has."""
        return self._own.read_cost(stage, key) or self._shared.read_cost(stage, key)

    def _holder(self, handle: Handle) -> Store:
        return self._own if handle.location.startswith(self._own.location) else self._shared
