"""What a format is: how a model is checked, written, verified and loaded in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from bipline.model.checkpoint import Checkpoint
from bipline.storage.directory import DirectoryWriter
from bipline.values.export import EngineCheck, Origin, TextCheck
from bipline.values.plan import Layout as PlanLayout

# A format's own class of settings, such as :class:`bipline.settings.gguf.GgufSettings`; None for
# a format that has none.
SettingsOf = Any


@dataclass(frozen=True)
class Subject:
    """A model that is written in a format, where it came from, and what it is measured on.

    ``texts`` are files by name; ``dense`` is the model whose tokenizer it must have, where one is
    known, and ``config`` the text of a config.json in place of the model's own.
    """

    checkpoint: Checkpoint
    origin: Origin
    texts: Mapping[str, Path] = field(default_factory=dict)
    dense: Path | None = None
    config: str | None = None


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
    """A way to write a model for an engine. One more is a file, and a line in ``registry``.

    ``file`` is what is loaded, in the format's folder; empty where it is the folder itself.
    ``extra`` brings what reads and writes it; empty where nothing more is needed.
    """

    name: str
    file: str
    extra: str

    def check(
        self, checkpoint: Checkpoint, texts: Mapping[str, Path], settings: SettingsOf
    ) -> Layout:
        """Refuse what the engine cannot hold, before any work, and name the nearest choice.

        Before the first stage and right after a plan was made this is asked of what the plan will
        make of the model: a checkpoint with a config and no tensors.
        """

    def write(
        self, subject: Subject, writer: DirectoryWriter, folder: str, settings: SettingsOf
    ) -> Path:
        """Write the model into a folder of the writer's directory; the path of what is loaded."""

    def verify(self, file: Path, subject: Subject, settings: SettingsOf) -> Verification | None:
        """Load what was written as its users will and compare it with the model.

        An engine of its own does so in a fresh process, and what it said is given back.
        """

    def how_to_load(self, file: str, layout: PlanLayout) -> str:
        """Markdown that says how users load the file, of a model whose plan has this layout."""

    def origin(self, file: Path) -> dict[str, str]:
        """What the file tells of where its tensors came from, under ``bipline.FIELD``.

        Raises Refused for what is no file of this format. The folder of hf tells it in its config
        and weights, and nothing here.
        """


def of_the_decoder_alone(checkpoint: Checkpoint) -> tuple[str, ...]:
    """What is told of a file for language models of a decoder that lies in another model."""
    if checkpoint.nesting is None:
        return ()
    beside = checkpoint.nesting.beside
    around = sorted({name.removeprefix("model.").partition(".")[0] for name in beside})
    return (
        f"the decoder of a {checkpoint.nesting.config['model_type']} alone: the {len(beside)} "
        f"other tensors ({', '.join(around)}) are not in it, so it reads text and no images",
    )
