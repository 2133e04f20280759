"""Releases of models, and what became of each: the records of a watch's journal."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from bipline.values.frozen import Frozen

SCHEMA_VERSION: Literal[1] = 1
ReleaseState = Literal["seen", "passed-over", "claimed", "running", "done", "parked", "retry-at"]


def _is_time(text: str) -> str:
    datetime.fromisoformat(text)
    return text


Moment = Annotated[str, AfterValidator(_is_time)]


class Release(Frozen):
    """One release of a model.

    ``key`` is the digest of what it is, a commit or what it holds, and never of its name. ``model``
    is its address with the revision, as ``bipline compress`` takes it. ``published`` is when the
    place says it came, ISO 8601.
    """

    key: str = Field(pattern="^[0-9a-f]{64}$")
    source: str
    place: str
    name: str
    revision: str
    model: str
    published: str

    @property
    def run(self) -> str:
        """The name of the one run that it starts."""
        short = "".join(sign if sign.isalnum() else "-" for sign in self.name.split("/")[-1])
        return f"{self.source}-{short[:40]}-{self.key[:12]}"


class WatchRecord(Frozen):
    """One step of a release, never changed: the last of its records says where it stands.

    ``release`` is told by the first alone. ``failures`` counts those of the surroundings since it
    was seen or asked for; ``until`` is when it may start again. ``filters`` is the digest of what
    passed it over.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    state: ReleaseState
    at: str
    watcher: str
    release: Release | None = None
    failures: int = 0
    exit_code: int | None = None
    reason: str = ""
    until: Moment | None = None
    log: str | None = None
    filters: str | None = None

    def to_json(self) -> str:
        """The text that a journal keeps."""
        return json.dumps(self.model_dump(mode="json", exclude_none=True), sort_keys=True) + "\n"


class WatchBegin(Frozen):
    """What lay in a place at the first look: the keys of releases that start nothing."""

    schema_version: Literal[1] = SCHEMA_VERSION
    place: str
    at: str
    watcher: str
    known: tuple[str, ...]

    def to_json(self) -> str:
        """The text that a journal keeps."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True) + "\n"


class ReleaseStanding(Frozen):
    """Where a release stands, and since when. ``run`` is the name of its run."""

    run: str
    release: Release
    state: ReleaseState
    at: str
    failures: int
    exit_code: int | None = None
    reason: str = ""
    until: str | None = None
    log: str | None = None


class WatchStatus(Frozen):
    """What became of every release that a watch did not find old, the first seen first."""

    schema_version: Literal[1] = SCHEMA_VERSION
    journal: str
    releases: tuple[ReleaseStanding, ...]
