"""Promotion: an entry of the journal by which an alias moves, and what a command came to."""

from __future__ import annotations

import json
from typing import Literal

from pydantic import AwareDatetime, Field

from bipline.storage.digests import digest_json
from bipline.values.frozen import Frozen
from bipline.values.verdict import Override, Verdict

SCHEMA_VERSION: Literal[1] = 1
Action = Literal["promote", "rollback"]


class JournalEntry(Frozen):
    """One attempt to move an alias. The journal numbers entries from 1 in the order they came.

    ``expects`` is the number of the entry that made the present champion, 0 for none, and
    ``expects_digest`` that entry's digest. Of those that expect the same the lowest number wins.
    ``adopted`` is what the alias pointed at before it had a journal. ``id`` is drawn for this one
    attempt. ``user`` is who was logged in, ``by`` what somebody typed.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    id: str
    alias: str
    action: Action
    version: str
    package_digest: str
    expects: int = Field(ge=0)
    expects_digest: str | None = None
    adopted: str | None = None
    verdict_digest: str | None = None
    passed: bool | None = None
    override: Override | None = None
    reason: str | None = None
    by: str | None = None
    user: str
    at: str

    @property
    def digest(self) -> str:
        """The digest of everything in it."""
        return digest_json(self.model_dump(mode="json"))

    def to_json(self) -> str:
        """The text that a registry keeps."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, allow_nan=False)


class RegisteredPackage(Frozen):
    """A version in a registry that is a place for files: which package it is, and where it lies.

    ``location`` is below the registry's place, on the hub a commit. ``evaluated_at`` is when its
    records were measured, None where nobody said.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    package_digest: str
    location: str
    evaluated_at: AwareDatetime | None = None
    user: str
    at: str

    def to_json(self) -> str:
        """The text that the registry keeps."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, allow_nan=False)


class HistoryLine(Frozen):
    """An entry of the journal as it came out: ``won`` moved the alias, another one came first."""

    number: int
    won: bool
    entry: JournalEntry


class History(Frozen):
    """The journal of a registered model, and where its aliases point beside it.

    ``champions`` are versions by alias as the journal has them; ``differs`` are sentences, one for
    every alias that points elsewhere.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    model: str
    lines: tuple[HistoryLine, ...]
    champions: dict[str, str]
    aliases: dict[str, str]
    differs: tuple[str, ...]


class Promotion(Frozen):
    """What ``promote`` or ``rollback`` came to.

    ``changed`` is False where the alias pointed at the version already. ``verdict`` is None where
    no gate was asked. ``also`` is what came of other registries, each for itself.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    model: str
    alias: str
    version: str
    previous: str | None
    changed: bool
    verdict: Verdict | None = None
    also: tuple[OtherRegistry, ...] = ()

    def __str__(self) -> str:
        how = "is now" if self.changed else "is already"
        before = f"; before it version {self.previous}" if self.previous else ""
        return f"{self.model}: version {self.version} {how} {self.alias}{before}"


class OtherRegistry(Frozen):
    """What came of a package in one more registry.

    ``version`` and ``location`` are None where it did not get there, ``promotion`` where no gate
    was asked or something failed; ``error`` says what, ``exit_code`` of which kind it is.
    """

    address: str
    version: str | None = None
    location: str | None = None
    promotion: Promotion | None = None
    verdict: Verdict | None = None
    error: str | None = None
    exit_code: int = 0

    def __str__(self) -> str:
        if self.error is not None:
            return f"{self.address}: {self.error}"
        return f"{self.address}: {self.promotion or f'version {self.version}'}"


Promotion.model_rebuild()
