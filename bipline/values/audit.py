"""Audit: what was asked about a served model, and the answers."""

from __future__ import annotations

from typing import Literal

from bipline.values.frozen import Frozen

SCHEMA_VERSION: Literal[1] = 1
Status = Literal["holds", "differs", "unknown"]


class Finding(Frozen):
    """The answer to one question. ``consequence`` is what follows where it does not hold."""

    about: str
    status: Status
    said: str
    consequence: str | None = None


class Audit(Frozen):
    """All findings about one package. ``package_digest`` is None where no package was found."""

    schema_version: Literal[1] = SCHEMA_VERSION
    source: str
    package_digest: str | None
    findings: tuple[Finding, ...]

    @property
    def differences(self) -> tuple[Finding, ...]:
        """The findings that differ from what something else says."""
        return tuple(each for each in self.findings if each.status == "differs")

    def to_json(self) -> str:
        """The text of its file."""
        return self.model_dump_json(indent=1) + "\n"
