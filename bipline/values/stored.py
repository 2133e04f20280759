"""Stored: what lies in a state folder's Store, who points at it, and what a pruning removed."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from bipline.values.frozen import Frozen

SCHEMA_VERSION: Literal[1] = 1


class StoredEntry(Frozen):
    """One stage's output, or unfinished work: where it lies, how large it is, who points at it.

    ``own_bytes`` are those that no other directory shares, so what its removal frees. ``runs``
    are pipeline runs, ``versions`` registered ones with their aliases.
    """

    stage: str
    key: str
    finished: bool
    kind: str | None
    digest: str | None
    bytes: int
    own_bytes: int
    made: datetime
    runs: tuple[str, ...] = ()
    versions: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The stage and the start of the key."""
        return f"{self.stage}/{self.key}"


class Stored(Frozen):
    """A Store's entries, the oldest first; ``removed`` are those that a pruning removed, or would.

    ``freed_bytes`` are theirs alone, ``dry_run`` says that nothing was removed.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    root: str
    entries: tuple[StoredEntry, ...]
    removed: tuple[str, ...] = ()
    freed_bytes: int = 0
    dry_run: bool = False
