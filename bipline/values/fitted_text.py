"""FittedText: by which 13-grams one knows again the text that a model was fitted on.

It lies beside windows, statistics, corrections, plans and models, and goes where they go. Of many
13-grams the smallest hashes are kept: they stand for the text as any others would, and the share
of another text that lies below the same bound is an estimate of all of it.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator

from bipline.storage.directory import write_text
from bipline.storage.folder import Folder
from bipline.storage.ngrams import Grams, ngrams_of
from bipline.storage.strict_json import parse_object
from bipline.values.reading import typed

SCHEMA_VERSION: Literal[1] = 1
FITTED_NAME = "fitted_text.json"
# 64 KB of hashes, however long the text was.
MOST_HASHES = 8192
ALL = 1 << 64
# One shared 13-gram among the few of a short text may be chance.
LEAST_SHARED = 2


class FittedText(BaseModel):
    """Hashes of 13-grams below ``below``, as little-endian 64-bit numbers in base64, ascending."""

    model_config = ConfigDict(frozen=True, extra="forbid", ignored_types=(cached_property,))

    schema_version: Literal[1] = SCHEMA_VERSION
    ngram_words: Literal[13] = 13
    below: int = Field(default=ALL, ge=0, le=ALL)
    hashes: str = Field(default="", max_length=MOST_HASHES * 11)

    @field_validator("hashes")
    @classmethod
    def _ascending(cls, hashes: str) -> str:
        raw = base64.b64decode(hashes, validate=True)
        grams = np.frombuffer(raw[: len(raw) // 8 * 8], dtype="<u8")
        if len(raw) % 8 or not (grams[1:] > grams[:-1]).all():
            raise ValueError("hashes are ascending numbers of 8 bytes")
        return hashes

    @classmethod
    def of(cls, documents: Iterable[str]) -> FittedText:
        """That of a text."""
        return cls._least(ngrams_of(documents), ALL)

    @classmethod
    def joined(cls, parts: Iterable[FittedText]) -> FittedText:
        """That of several texts together."""
        known = list(parts)
        grams = [part.grams for part in known] or [np.zeros(0, dtype=np.uint64)]
        return cls._least(
            np.unique(np.concatenate(grams)), min((part.below for part in known), default=ALL)
        )

    @classmethod
    def _least(cls, grams: Grams, below: int) -> FittedText:
        grams = grams[: _count_below(grams, below)]
        if len(grams) > MOST_HASHES:
            below, grams = int(grams[MOST_HASHES]), grams[:MOST_HASHES]
        hashes = base64.b64encode(grams.astype("<u8").tobytes()).decode("ascii")
        return cls(below=below, hashes=hashes)

    @cached_property
    def grams(self) -> Grams:
        """The hashes as numbers."""
        return np.frombuffer(base64.b64decode(self.hashes), dtype="<u8").astype(np.uint64)

    def overlap(self, documents: Iterable[str]) -> float:
        """The share of 13-grams in common with a text: of the fitted ones, or of the text's."""
        other = ngrams_of(documents)
        other = other[: _count_below(other, self.below)]
        shared = len(np.intersect1d(self.grams, other, assume_unique=True))
        if shared < LEAST_SHARED:
            return 0.0
        return max(shared / len(self.grams), shared / len(other))

    def to_json(self) -> str:
        """The text of the file."""
        return self.model_dump_json(indent=1) + "\n"


def _count_below(grams: Grams, below: int) -> int:
    return len(grams) if below >= ALL else int(np.searchsorted(grams, np.uint64(below)))


def parse_fitted(text: bytes, where: str) -> FittedText:
    """What was written. Raises InvalidInput where it is not; ``where`` names it."""
    name = "record of fitted text"
    return typed(parse_object(text, where, name), FittedText, where, name)


def write_fitted(directory: Path, places: Iterable[Path]) -> None:
    """Write into a directory what lies at ``places`` together; nothing where none has it."""
    known = read_fitted(places)
    if known is not None:
        write_text(directory / FITTED_NAME, known.to_json())


def beside_plan(plan: Path) -> Path:
    """Where the fitted text of a plan in a file of its own lies."""
    return plan.with_name(f"{plan.stem}.{FITTED_NAME}")


def fitted_in(folder: Folder) -> FittedText | None:
    """What lies in a model's folder, wherever that is; None where it does not tell."""
    if FITTED_NAME not in folder.names():
        return None
    return parse_fitted(folder.read(FITTED_NAME), f"{folder.location}/{FITTED_NAME}")


def read_fitted(places: Iterable[Path]) -> FittedText | None:
    """What lies in directories, or is these files, together; None where none of them has it."""
    files = [place / FITTED_NAME if place.is_dir() else place for place in places]
    found = [parse_fitted(file.read_bytes(), str(file)) for file in files if file.is_file()]
    return FittedText.joined(found) if found else None
