"""Verdict: what a gate said of a package, check by check, with every number it said it by.

A check passes, fails, or cannot tell; what cannot tell does not pass.
"""

from __future__ import annotations

import json
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from bipline.storage.digests import digest_json
from bipline.values.frozen import Frozen

SCHEMA_VERSION: Literal[1] = 1
Answer = Literal["pass", "fail", "cannot tell"]
Number = float | int | str | None
LONGEST_REASON = 1000


class Check(Frozen):
    """One check: its answer, the numbers it was given by, and what they say in one sentence.

    A number that JSON cannot hold is there as text.
    """

    name: str
    answer: Answer
    numbers: dict[str, Number] = Field(default_factory=dict)
    sentence: str


class Champion(Frozen):
    """The version that an alias pointed at when a gate compared with it."""

    version: str
    package_digest: str | None


class Override(Frozen):
    """Why a version was promoted though a gate refused it, and who said so.

    ``by`` is what somebody typed.
    """

    reason: str
    by: str

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        for name, text in (("reason", self.reason), ("by", self.by)):
            if not (text.isprintable() and text.strip() and len(text) <= LONGEST_REASON):
                raise ValueError(
                    f"{name}: 1 to {LONGEST_REASON} signs that can be shown are needed"
                )
        return self


class Verdict(Frozen):
    """What a gate said of one version that was to get an alias.

    ``records`` are digests by ``candidate``, ``dense`` and ``champion``, of those that were read.
    ``passed`` is whether every check passed; an override changes nothing of that.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    model: str
    version: str
    alias: str
    package_digest: str
    gate: str
    gate_digest: str
    champion: Champion | None
    records: dict[str, str]
    judged_at: str
    passed: bool
    checks: tuple[Check, ...] = Field(min_length=1)
    override: Override | None = None

    @model_validator(mode="after")
    def _passes_by_its_checks(self) -> Self:
        if self.passed != all(check.answer == "pass" for check in self.checks):
            raise ValueError("passed: does not follow from the checks")
        return self

    @property
    def opens(self) -> bool:
        """Whether the version may be promoted: it passed, or somebody answers for it."""
        return self.passed or self.override is not None

    @property
    def refusals(self) -> list[Check]:
        """The checks that did not pass, those that failed first."""
        found = [check for check in self.checks if check.answer != "pass"]
        return sorted(found, key=lambda check: check.answer == "cannot tell")

    @property
    def digest(self) -> str:
        """The digest of everything in it."""
        return digest_json(self.model_dump(mode="json"))

    @property
    def file_name(self) -> str:
        """The file that keeps it, in a run and in a package's lineage."""
        return verdict_file(self.digest)

    def to_json(self) -> str:
        """The text of a verdict's file: sorted and indented."""
        value: dict[str, Any] = self.model_dump(mode="json")
        return json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n"


def verdict_file(digest: str) -> str:
    """The name of the file that keeps the verdict of a digest."""
    return f"verdicts/{digest[:16]}.json"
