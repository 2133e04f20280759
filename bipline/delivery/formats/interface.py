"""What a format is: how a model is checked, written, verified and loaded in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from bipline.model.checkpoint import Checkpoint
from bipline.values.export import EngineCheck, Origin, TextCheck

# A format's own class of settings, such as :class:`bipline.settings.gguf.GgufSettings`.
SettingsOf = Any


@dataclass(frozen=True)
class Verification:
    """What an engine said of a file: the comparison, and perplexity by text."""

    check: EngineCheck
    perplexity: dict[str, TextCheck] = field(default_factory=dict)


@dataclass(frozen=True)
class Layout:
    """How a format will hold a model: what it is called there, and what its reader should know."""

    architecture: str
    notes: tuple[str, ...] = ()


class Format(Protocol):
    """A way to write a model for an engine. One more is a folder, and a line in ``directory``."""

    name: str

    def check(
        self, checkpoint: Checkpoint, texts: Mapping[str, Path], settings: SettingsOf
    ) -> Layout:
        """Refuse what the engine cannot hold, before any work, and name the nearest choice."""

    def write(
        self, checkpoint: Checkpoint, origin: Origin, out: Path, settings: SettingsOf
    ) -> Path:
        """Write the model below ``out``, tensor by tensor; the path of its main file."""

    def verify(
        self, file: Path, checkpoint: Checkpoint, texts: Mapping[str, Path], settings: SettingsOf
    ) -> Verification:
        """Open the file by its engine in a fresh process and compare it with the model."""

    def how_to_load(self, file: str) -> str:
        """Markdown that says how users load the file."""
