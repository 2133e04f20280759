"""Where releases come from: what every kind of source must be able to do, and which there are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Protocol

from bipline.model.checkpoint import Checkpoint
from bipline.model.resolve import licences_of
from bipline.settings.watch import SourceSettings
from bipline.storage.digests import digest_json
from bipline.values.release import Release


@dataclass(frozen=True)
class Description:
    """What filters ask of a release; None is what its place does not tell."""

    family: str | None
    parameters: int | None
    licence: str | None
    tags: frozenset[str]

    @classmethod
    def of(cls, model: Checkpoint, tags: frozenset[str] = frozenset()) -> Description:
        """What a model says itself, by its configuration and the headers of its weights.

        Of its licence the name in README.md goes before the first line of the file.
        """
        licence = next(iter([*licences_of(model.folder)][::-1]), None)
        return cls(str(model.config["model_type"]), model.parameters, licence, tags)


class Source(Protocol):
    """Releases of one kind of place."""

    @property
    def places(self) -> tuple[str, ...]:
        """What is looked at; each has a first look of its own."""

    def listed(self, place: str) -> list[Release]:
        """What lies in a place now, by its listing alone.

        Raises EnvironmentFailure where it does not answer, InvalidInput where it is none.
        """

    def described(self, release: Release) -> Description:
        """A closer look: that the release is there, whole, and what it is.

        Raises EnvironmentFailure where that cannot be told now, InvalidInput for what is no model
        that can be compressed.
        """

    def is_still(self, release: Release) -> bool:
        """Whether what lies there is still the release, asked as its run starts.

        Raises EnvironmentFailure where that cannot be told now.
        """


# The module and class of each kind: a library is imported where its kind is watched.
KINDS: Mapping[str, tuple[str, str]] = {
    "organisation": ("source_hub", "HubSource"),
    "repositories": ("source_hub", "HubSource"),
    "s3": ("source_folders", "S3Source"),
    "folder": ("source_folders", "LocalSource"),
    "registered": ("source_registered", "RegisteredSource"),
}
Opener = Callable[[str, SourceSettings, Path, Path | None], Source]


def open_source(name: str, settings: SourceSettings, folder: Path, state: Path | None) -> Source:
    """The source of a name.

    ``folder`` is where it may keep what it knows of files; ``state`` is the state folder of its
    runs, whose registry they ask.
    """
    module, kind = KINDS[settings.kind]
    opened: Opener = getattr(import_module(f"bipline.watch.{module}"), kind)
    return opened(name, settings, folder, state)


def release_key(source: str, kind: str, identity: str) -> str:
    """The key of a release for a source: of what it is, whatever it is called."""
    return digest_json([source, kind, identity])


def told_time(moment: datetime) -> str:
    """A time as records tell it."""
    return moment.astimezone(UTC).isoformat(timespec="seconds")
