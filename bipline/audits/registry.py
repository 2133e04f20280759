"""Every version of a registry that an alias points at, audited one by one."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace

from bipline.audits.audit import Request, audit
from bipline.audits.findings import differs
from bipline.audits.registered import EDITED
from bipline.base.addresses import without_secrets
from bipline.base.errors import InvalidInput
from bipline.base.progress import note
from bipline.delivery.registries.aliased import aliased_versions
from bipline.stages.resolve import REGISTRY
from bipline.values.audit import Audit, AuditedVersion


@dataclass(frozen=True)
class Pointed:
    """A registered version, and the aliases that point at it."""

    model: str
    version: str
    aliases: tuple[str, ...]

    @property
    def source(self) -> str:
        """The version by its number: an alias may be moved meanwhile."""
        return f"{REGISTRY}{self.model}/{self.version}"


def pointed_versions(address: str, name: str | None = None) -> list[Pointed]:
    """The versions of bipline's that an alias points at; of other models that is said.

    Raises InvalidInput where there is none, or no model of this name.
    """
    found: dict[tuple[str, int], list[str]] = defaultdict(list)
    for each in aliased_versions(address, name):
        if each.is_ours:
            found[each.model, int(each.version)].append(each.alias)
        else:
            note(f"{each.model}@{each.alias} is no package of bipline, so it is not audited")
    if not found:
        what = f"of {name!r} " if name else ""
        raise InvalidInput(f"{without_secrets(address)}: no alias {what}points at a package")
    return [
        Pointed(model, str(version), tuple(sorted(aliases)))
        for (model, version), aliases in sorted(found.items())
    ]


def audit_version(pointed: Pointed, request: Request) -> AuditedVersion:
    """One version, asked as ``request`` asks; one that is no package any more is a difference."""
    request = replace(request, source=pointed.source)
    try:
        found = audit(request)
    except InvalidInput as error:
        finding = differs("version's tags", str(error), EDITED)
        found = Audit(source=pointed.source, package_digest=None, findings=(finding,))
    return AuditedVersion(
        model=pointed.model, version=pointed.version, aliases=pointed.aliases, audit=found
    )
