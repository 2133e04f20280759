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
from typing import Any, Literal, Self

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from bipline.storage.digests import digest_json
from bipline.values.frozen import Frozen
from bipline.values.reading import read_value

SCHEMA_VERSION: Literal[1] = 1
# What says where content came from, not what it is.
PROVENANCE = {"source", "revision", "location"}
CONFIG = "config.json"


class ResolvedModel(Frozen):
    """A model directory. ``revision`` is the hub's commit; ``files`` maps names to sha256.

    Where the weights are not read for their digest alone, ``tensor_digest`` is None at first and
    ``layout_digest`` says what is known without them: config, names and shapes. ``config_digest``
    is of a config.json that names its origin, without that.
    """

    source: str
    revision: str | None = None
    location: str
    tensor_digest: str | None
    layout_digest: str | None = None
    config_digest: str | None = None
    files: dict[str, str]
    tokenizer_digest: str
    licence: str | None = None

    @model_validator(mode="after")
    def _has_an_identity(self) -> Self:
        if self.tensor_digest is None and self.layout_digest is None:
            raise ValueError("one of tensor_digest and layout_digest is needed")
        return self

    @model_serializer(mode="wrap")
    def _without_unused(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A resolution without digests of layout or config is written, and digested, as ever."""
        value: dict[str, Any] = write(self)
        for name in ("layout_digest", "config_digest"):
            if value.get(name) is None:
                value.pop(name, None)
        return value

    @property
    def identity(self) -> str:
        """What a stage that reads the weights is keyed by, wherever they lie.

        The digest of config and tensors; of a model whose tensors are not known yet, its layout,
        which holds for the weights at one place alone.
        """
        if self.tensor_digest is None:
            return f"layout {self.layout_digest}"
        config = self.config_digest or self.files[CONFIG]
        return digest_json({"config": config, "tensors": self.tensor_digest})


class ResolvedText(Frozen):
    """A text file: ``.txt`` or JSON Lines, and the number of documents it holds."""

    source: str
    revision: str | None = None
    location: str
    sha256: str
    documents: int


class ResolvedTask(Frozen):
    """A zero-shot task: JSON Lines and the number of its rows."""

    source: str
    location: str
    sha256: str
    rows: int


class Resolution(Frozen):
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

    def with_files(self, *others: Resolution) -> Resolution:
        """The same model with the texts and tasks of others too."""
        parts = (self, *others)
        texts = {name: text for part in parts for name, text in part.texts.items()}
        tasks = {name: task for part in parts for name, task in part.tasks.items()}
        return Resolution(model=self.model, texts=texts, tasks=tasks)

    def to_json(self) -> str:
        """The text of the resolution: sorted and indented, the same for the same content."""
        value = self.model_dump(mode="json")
        return json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n"


def read_resolution(path: Path) -> Resolution:
    """Read a resolution. Raises InvalidInput when the file is missing or is not one."""
    return read_value(path, Resolution, "resolution")
