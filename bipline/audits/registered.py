"""What a registry says of the version that is served, against its package and its journal."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from bipline.audits.findings import answered, differs, holds, short, unknown
from bipline.audits.opening import Opened, Served
from bipline.audits.tracked import EDITED, run_findings
from bipline.compression.corrections import PLAN_NAME
from bipline.delivery.evidence import RESOLUTION
from bipline.delivery.registries.journal import history_of
from bipline.delivery.registries.mlflow import DIGEST_TAG
from bipline.delivery.version_summary import base_model
from bipline.settings.compress import CANDIDATE
from bipline.settings.trust import TrustSettings
from bipline.storage.manifest import read_manifest
from bipline.values.audit import Finding
from bipline.values.plan import read_plan
from bipline.values.promotion import HistoryLine, JournalEntry
from bipline.values.resolution import read_resolution

OTHER_BYTES = "what is served is not what was registered"
MOVED = "somebody moved it by hand: no gate was asked, and nobody is on record"
TYPED = "names that were typed are only that; the user is who was logged in, on that machine"
NOT_LET = "somebody moved the alias who may not"


def registered_findings(opened: Opened, served: Served, trust: TrustSettings) -> Iterator[Finding]:
    """The stored copy, the version's tags, its run, and who moved its aliases when."""
    yield _copy(opened, served)
    if opened.manifest is not None:
        yield from answered("version's tags", lambda: _tags(served, opened.place), EDITED)
    yield from run_findings(served, opened)
    yield from answered("journal", lambda: _journal(served, trust), MOVED)


def _copy(opened: Opened, served: Served) -> Finding:
    name = f"version {served.version.number} of {served.registry.name}"
    problem = opened.problem or opened.around
    if not problem and opened.digest != served.digest:
        problem = f"{name} is package {str(opened.digest)[:12]}, not {served.digest[:12]}"
    if problem:
        return differs("registry's copy", problem, OTHER_BYTES)
    said = f"{name}: every stored file hashed again; {DIGEST_TAG} {served.digest[:12]}"
    return holds("registry's copy", said)


def _expected(place: Path) -> dict[str, str]:
    """The version's tags as the package would have them."""
    model, plan = read_resolution(place / RESOLUTION).model, read_plan(place / PLAN_NAME)
    return {
        "tensor_digest": str(read_manifest(place).info.get("tensor_digest")),
        "plan_digest": plan.digest,
        "base_model": base_model(model),
        "base_tensor_digest": str(model.tensor_digest),
    }


def _tags(served: Served, place: Path) -> Iterator[Finding]:
    tags, expected = served.tags, _expected(place)
    wrong = {tag: value for tag, value in expected.items() if str(tags.get(tag)) != value}
    for tag, value in wrong.items():
        if tag in tags:
            said = f"{tag} says {short(tags[tag])}, the package {short(value)}"
            yield differs("version's tags", said, EDITED)
        else:
            said = f"{tag} is missing"
            yield unknown("version's tags", said, "a search by it misses the version")
    if not wrong:
        yield holds("version's tags", f"{', '.join(expected)} say what the package says")


def _journal(served: Served, trust: TrustSettings) -> Iterator[Finding]:
    """Who moved an alias to this version, and whether aliases are where the journal has them."""
    history, number = history_of(served.registry), served.version.number
    for sentence in history.differs:
        yield differs("journal", sentence, MOVED)
    for line in history.lines:
        if line.entry.version == number and line.won:
            yield from _entry(served, line, trust)
    recorded = {alias for alias, version in history.champions.items() if version == number}
    for alias, version in history.aliases.items():
        if version == number and alias not in recorded and not _is_kept_elsewhere(alias):
            said = f"{alias} points at version {number}, and no entry says so"
            yield differs("journal", said, MOVED)
    if not recorded:
        said = "no entry of the journal promoted this version"
        yield unknown("journal", said, "it was never let through a gate")


def _is_kept_elsewhere(alias: str) -> bool:
    """Aliases that the journal does not keep: candidates, and the champion before."""
    return alias == CANDIDATE or alias.startswith("previous-")


def _entry(served: Served, line: HistoryLine, trust: TrustSettings) -> Iterator[Finding]:
    entry = line.entry
    said = f"entry {line.number}: {entry.action} to {entry.alias} at {entry.at}"
    if entry.package_digest != served.digest:
        other = f"{said}, of package {entry.package_digest[:12]}, not {served.digest[:12]}"
        yield differs("journal", other, EDITED)
        return
    gate = "no gate was asked"
    if digest := entry.verdict_digest:
        passed = "passed" if entry.passed else "refused it, overridden"
        gate = f"gate {passed}, verdict {digest[:12]}"
        yield from answered("verdict", lambda: [_verdict(served, digest)], EDITED)
    yield holds("journal", f"{said}; {gate}")
    yield _promoter(entry, trust)


def _promoter(entry: JournalEntry, trust: TrustSettings) -> Finding:
    """Who moved an alias: the user that was logged in, and beside it what somebody typed."""
    known = {each.user: each for each in trust.users}
    typed = [name for name in (entry.by, entry.override and entry.override.by) if name]
    beside = f"; {' and '.join(map(repr, dict.fromkeys(typed)))} was typed" if typed else ""
    because = f", because {entry.reason!r}" if entry.reason else ""
    said = f"user {entry.user} moved {entry.alias}{because}{beside}"
    if not trust.users:
        return unknown("who promoted", said, TYPED)
    user = known.get(entry.user)
    if user is None or (user.aliases and entry.alias not in user.aliases):
        said = f"{said}; the trust file lets that user move no such alias"
        return differs("who promoted", said, NOT_LET)
    return unknown("who promoted", f"{said}; the trust file calls that user {user.name}", TYPED)


def _verdict(served: Served, digest: str) -> Finding:
    verdict = served.registry.verdict(served.version, digest)
    if verdict.digest != digest:
        said = f"the run's verdict is {verdict.digest[:12]}, the journal names {digest[:12]}"
        return differs("verdict", said, EDITED)
    passed = sum(check.answer == "pass" for check in verdict.checks)
    checks = f"{passed} of {len(verdict.checks)} checks passed"
    return holds("verdict", f"gate {verdict.gate}: {checks}, judged {verdict.judged_at}")
