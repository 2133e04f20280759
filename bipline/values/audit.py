"""Audit: what was asked about a served model, and the answers."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Literal, get_args

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
    """All findings about one package. ``package_digest`` is None where no package was found.

    ``audited_at`` is None in files of before it was kept.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    source: str
    package_digest: str | None
    audited_at: datetime | None = None
    findings: tuple[Finding, ...]

    @property
    def differences(self) -> tuple[Finding, ...]:
        """The findings that differ from what something else says."""
        return tuple(each for each in self.findings if each.status == "differs")

    @property
    def counts(self) -> Mapping[Status, int]:
        """How many findings have each status."""
        statuses = [each.status for each in self.findings]
        return {status: statuses.count(status) for status in get_args(Status)}

    def to_json(self) -> str:
        """The text of its file."""
        return self.model_dump_json(indent=1) + "\n"


class AuditedVersion(Frozen):
    """A registered version that aliases point at, audited."""

    model: str
    version: str
    aliases: tuple[str, ...]
    audit: Audit


class RegistryAudit(Frozen):
    """The audits of all versions that an alias points at, and the registry they lie in."""

    schema_version: Literal[1] = SCHEMA_VERSION
    registry: str
    versions: tuple[AuditedVersion, ...]

    @property
    def differences(self) -> tuple[AuditedVersion, ...]:
        """The versions with a finding that differs."""
        return tuple(each for each in self.versions if each.audit.differences)
