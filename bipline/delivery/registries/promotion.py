"""Promotion of one registered version: judged beside the champion, then moved by the journal."""

from __future__ import annotations

from dataclasses import dataclass

from bipline.base.errors import BiplineError, Refused
from bipline.base.progress import note
from bipline.delivery.evidence import Evidence
from bipline.delivery.gate import Candidate, Incumbent, judge
from bipline.delivery.registries.interface import AnyVersion, PackageRegistry
from bipline.delivery.registries.journal import (
    Registry,
    State,
    check_alias,
    entry_for,
    move,
    roll_back,
    settle,
)
from bipline.settings.gate import GateSettings
from bipline.values.promotion import Promotion
from bipline.values.verdict import Override, Verdict


@dataclass(frozen=True)
class Gate:
    """What decides: a gate, what it is called, and who answers for a version it refuses."""

    settings: GateSettings
    name: str
    override: Override | None = None


class GateRefused(Refused):
    """A gate refused a version; ``verdict`` says why."""

    def __init__(self, verdict: Verdict) -> None:
        found, count = verdict.refusals, len(verdict.checks)
        more = f"; and {len(found) - 1} more" if len(found) > 1 else ""
        super().__init__(
            f"{verdict.model} version {verdict.version} is not made {verdict.alias}: gate "
            f"{verdict.gate} passed {count - len(found)} of {count} checks; {found[0].answer}: "
            f"{found[0].sentence}{more}"
        )
        self.verdict = verdict


def promote_version(
    registry: PackageRegistry[AnyVersion],
    version: AnyVersion,
    alias: str,
    gate: Gate,
    evidence: Evidence,
) -> Promotion:
    """Judge a version and give it an alias.

    The version must have been hashed where it lies. The verdict is kept beside it, whatever it
    says. Raises GateRefused, or Refused where another promotion came first.
    """
    check_alias(alias)
    state = settle(registry, alias)
    if state.champion == version.number:
        return _promotion(registry, state, changed=state.repaired)
    candidate = Candidate(registry.name, version.number, alias, evidence)
    incumbent = _incumbent(registry, state)
    verdict = judge(gate.settings, gate.name, candidate, incumbent, gate.override)
    registry.keep(version, verdict)
    if not verdict.opens:
        raise GateRefused(verdict)
    override = None if verdict.passed else gate.override
    entry = entry_for(
        state, "promote", version.number, version.package_digest,
        verdict_digest=verdict.digest, passed=verdict.passed, override=override,
        by=override.by if override else None,
    )  # fmt: skip
    now = move(registry, state, entry)
    return _promotion(registry, now, changed=True, verdict=verdict)


def roll_back_alias(
    registry: PackageRegistry[AnyVersion],
    alias: str,
    expected: str | None = None,
    reason: str | None = None,
    by: str | None = None,
) -> Promotion:
    """Give an alias back to the version before; that one is hashed again first.

    As :func:`bipline.delivery.registries.journal.roll_back`.
    """
    check_alias(alias)

    def check(version: str) -> str:
        return registry.check(registry.find(version))

    state, changed = roll_back(registry, alias, check, expected, reason=reason, by=by)
    return _promotion(registry, state, changed)


def _incumbent(registry: PackageRegistry[AnyVersion], state: State) -> Incumbent | None:
    """The champion, with what its package tells; None where the alias points at nothing."""
    if state.champion is None:
        return None
    try:
        evidence = registry.evidence(registry.find(state.champion))
    except BiplineError as error:
        note(f"version {state.champion}, the champion, cannot be read: {error}")
        evidence = None
    return Incumbent(state.champion, evidence)


def _promotion(
    registry: Registry, state: State, changed: bool, verdict: Verdict | None = None
) -> Promotion:
    return Promotion(
        model=registry.name,
        alias=state.alias,
        version=str(state.champion),
        previous=state.previous,
        changed=changed,
        verdict=verdict,
    )
