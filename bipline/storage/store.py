"""The Store: where finished directories live, one place per stage and key.

The key is made of digests (see :mod:`bipline.storage.stage_key`), so a place that exists is the
answer to a question already asked. Where the bytes lie, on this disk or behind ``s3://``, is the
Store's affair: a stage finds, writes, works and opens, and never asks for a path.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from bipline.base.errors import InvalidInput
from bipline.storage.directory import DirectoryWriter
from bipline.storage.folder import Folder
from bipline.storage.handle import Handle, StoredGone
from bipline.storage.local_store import LocalStore
from bipline.storage.s3_client import S3_SCHEME
from bipline.storage.s3_store import S3Store

__all__ = ["Handle", "LocalStore", "S3Store", "Store", "StoredGone", "open_store"]


class Store(Protocol):
    """Finished directories by stage and key, and the unfinished work behind them."""

    @property
    def location(self) -> str:
        """As the user would write it: a path or ``s3://bucket/prefix``."""

    def find(self, stage: str, key: str) -> Handle | None:
        """The finished output of a stage with this key, or None."""

    def write(self, stage: str, key: str, kind: str) -> AbstractContextManager[DirectoryWriter]:
        """A local directory to write into, whose content appears whole or not at all.

        Files that a killed run recorded by ``add_hashed`` under this key are kept.
        Raises InvalidInput when another process writes the same.
        """

    def work(self, stage: str, key: str) -> AbstractContextManager[Path]:
        """A local work directory, held by one process; removed when the block ends well.

        What a killed run recorded there is there for the next holder.
        Raises InvalidInput when another process holds it.
        """

    def open(self, handle: Handle) -> Path:
        """A local directory with the bytes of a handle, every file hashed and compared.

        Raises StoredGone when nothing is there, Refused when a byte differs.
        """

    def folder(self, handle: Handle) -> Folder:
        """What a handle names, to be read by ranges; nothing is copied."""

    def discard(self, stage: str, key: str) -> None:
        """Remove the output of this key, if there is one."""

    def write_cost(self, stage: str, key: str, cost: dict[str, Any]) -> None:
        """Keep what making the output cost, beside it: no digest covers it."""

    def read_cost(self, stage: str, key: str) -> dict[str, Any] | None:
        """What making the output cost, or None where nothing was kept."""


def open_store(location: str | Path, downloads: Path | None = None) -> Store:
    """The Store behind a path, ``file://`` or ``s3://bucket/prefix``.

    ``downloads`` is where an S3 Store keeps local copies and unfinished work; without it a folder
    in the user's cache. Raises InvalidInput for other schemes.
    """
    text = str(location)
    if text.startswith(S3_SCHEME):
        return S3Store(text, downloads or default_downloads())
    if "://" in text and not text.startswith("file://"):
        raise InvalidInput(f"store {text!r}: give a directory, file:// or s3://bucket/prefix")
    return LocalStore(Path(text.removeprefix("file://")))


def default_downloads() -> Path:
    """The folder of local copies in the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "bipline" / "store"
