"""Resolution: what the names of a run stood for, down to the digest of every file.

The digest of a resolution covers content alone. Where a file lies, what it was called and
which branch led to it are written down for the reader and left out of the digest: a directory
that was moved, or downloaded from the hub instead of read from disk, is the same model, and
bytes that changed behind an unchanged name are another.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from bipline.storage.digests import digest_json
from bipline.values.reading import read_value

SCHEMA_VERSION: Literal[1] = 1
# What says where content came from, not what it is.
PROVENANCE = {"source", "revision", "location"}


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ResolvedModel(_Frozen):
    """A model directory. ``revision`` is the hub's commit; ``files`` maps names to sha256."""

    source: str
    revision: str | None = None
    location: str
    tensor_digest: str
    files: dict[str, str]
    tokenizer_digest: str
    licence: str | None = None


class ResolvedText(_Frozen):
    """A text file: ``.txt`` or JSON Lines, and the number of documents it holds."""

    source: str
    revision: str | None = None
    location: str
    sha256: str
    documents: int


class ResolvedTask(_Frozen):
    """A zero-shot task: JSON Lines and the number of its rows."""

    source: str
    location: str
    sha256: str
    rows: int


class Resolution(_Frozen):
    """Everything a run starts from: one model, texts and tasks by the names the run uses."""

    schema_version: Literal[1] = SCHEMA_VERSION
    model: ResolvedModel
    texts: dict[str, ResolvedText] = Field(default_factory=dict)
    tasks: dict[str, ResolvedTask] = Field(default_factory=dict)

    @property
    def digest(self) -> str:
        """The digest of the content, independent of where it lies and how it was named."""
        value = self.model_dump(
            mode="json",
            exclude={
                "model": PROVENANCE,
                "texts": {"__all__": PROVENANCE},
                "tasks": {"__all__": PROVENANCE},
            },
        )
        return digest_json(value)

    def subset(self, texts: Iterable[str] = (), tasks: Iterable[str] = ()) -> Resolution:
        """The model with some of the files only, so that a stage is keyed by what it reads."""
        return Resolution(
            model=self.model,
            texts={name: self.texts[name] for name in texts},
            tasks={name: self.tasks[name] for name in tasks},
        )

    def to_json(self) -> str:
        """The text of the resolution: sorted and indented, the same for the same content."""
        value = self.model_dump(mode="json")
        return json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n"


def read_resolution(path: Path) -> Resolution:
    """Read a resolution. Raises InvalidInput when the file is missing or is not one."""
    return read_value(path, Resolution, "resolution")
