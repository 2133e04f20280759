"""What a registry says of the version that is served, against its package and its journal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bipline.audit.findings import answered, differs, holds, unknown
from bipline.base.errors import BiplineError, Refused
from bipline.compression.corrections import PLAN_NAME
from bipline.delivery.evidence import RESOLUTION
from bipline.delivery.registries.journal import history_of
from bipline.delivery.registries.journal_mlflow import MlflowRegistry, Version
from bipline.delivery.registries.mlflow import DIGEST_TAG
from bipline.delivery.registries.mlflow_source import SCHEME, download_version, find_version
from bipline.delivery.version_summary import base_model
from bipline.settings.compress import CANDIDATE
from bipline.storage.manifest import read_manifest
from bipline.values.audit import Finding
from bipline.values.plan import read_plan
from bipline.values.promotion import HistoryLine
from bipline.values.resolution import read_resolution

OTHER_BYTES = "what is served is not what was registered"
MOVED = "somebody moved it by hand: no gate was asked, and nobody is on record"
EDITED = "somebody edited the registry: what it says of this version is not to be relied on"
TYPED = "names that were typed are only that; the user is who was logged in, on that machine"


@dataclass(frozen=True)
class Served:
    """A registered version: what the registry keeps of it, and its package where it was fetched.

    ``place`` is None where what is stored there is not the package any more; ``refused`` says why.
    """

    registry: MlflowRegistry
    version: Version
    tags: dict[str, Any]
    place: Path | None
    refused: str = ""

    @property
    def digest(self) -> str:
        """The digest that the registry keeps of the package."""
        return self.version.package_digest

    @classmethod
    def found(cls, source: str, address: str | None, downloads: Path) -> Served:
        """The version, its stored copy hashed again. Raises InvalidInput where there is none."""
        record = find_version(source, address)
        registry = MlflowRegistry(record.name, address)
        version, tags = registry.find(str(record.version)), dict(record.tags)
        # By its number from here on: the alias may be moved meanwhile.
        source = f"{SCHEME}{record.name}/{record.version}"
        try:
            registry.check(version)
            place = download_version(source, downloads, address)[0].parent
            return cls(registry, version, tags, place)
        except Refused as error:
            return cls(registry, version, tags, None, str(error))


def registered_findings(served: Served) -> Iterator[Finding]:
    """The stored copy, the version's tags, its run, and who moved its aliases when."""
    if served.place is None:
        yield differs("registry's copy", served.refused, OTHER_BYTES)
    else:
        name = f"version {served.version.number} of {served.registry.name}"
        said = f"{name}: every stored file hashed again; {DIGEST_TAG} {served.digest[:12]}"
        yield holds("registry's copy", said)
        expected = _expected(served.place)
        yield from answered("version's tags", lambda: _tags(served.tags, expected), EDITED)
    yield from _run(served)
    yield from answered("journal", lambda: _journal(served), MOVED)


def _expected(place: Path) -> dict[str, str]:
    """The version's tags as the package would have them."""
    model, plan = read_resolution(place / RESOLUTION).model, read_plan(place / PLAN_NAME)
    return {
        "tensor_digest": str(read_manifest(place).info.get("tensor_digest")),
        "plan_digest": plan.digest,
        "base_model": base_model(model),
        "base_tensor_digest": str(model.tensor_digest),
    }


def _tags(tags: Mapping[str, Any], expected: Mapping[str, str]) -> Iterator[Finding]:
    wrong = {tag: value for tag, value in expected.items() if str(tags.get(tag)) != value}
    for tag, value in wrong.items():
        if tag in tags:
            said = f"{tag} says {tags[tag]}, the package {value}"
            yield differs("version's tags", said, EDITED)
        else:
            said = f"{tag} is missing"
            yield unknown("version's tags", said, "a search by it misses the version")
    if not wrong:
        yield holds("version's tags", f"{', '.join(expected)} say what the package says")


def _run(served: Served) -> Iterator[Finding]:
    try:
        run = served.registry.run(served.version)
    except BiplineError as error:
        yield differs("MLflow run", str(error), "parameters, metrics and verdicts are gone")
        return
    name = f"{run.info.run_name} ({run.info.run_id})"
    if run.info.lifecycle_stage != "active":
        consequence = "its parameters, metrics and verdicts are about to be gone"
        yield differs("MLflow run", f"{name} was deleted", consequence)
    else:
        yield holds("MLflow run", f"{name}, {run.info.status.lower()}")


def _journal(served: Served) -> Iterator[Finding]:
    """Who moved an alias to this version, and whether aliases are where the journal has them."""
    history, number = history_of(served.registry), served.version.number
    for sentence in history.differs:
        yield differs("journal", sentence, MOVED)
    for line in history.lines:
        if line.entry.version == number:
            yield from _entry(served, line)
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


def _entry(served: Served, line: HistoryLine) -> Iterator[Finding]:
    entry = line.entry
    if not line.won:
        return
    said = _said(line)
    if entry.package_digest != served.digest:
        other = f"{said}, of package {entry.package_digest[:12]}, not {served.digest[:12]}"
        yield differs("journal", other, EDITED)
        return
    gate = "no gate was asked"
    if digest := entry.verdict_digest:
        passed = "passed" if entry.passed else "refused it, overridden"
        gate = f"gate {passed}, verdict {digest[:12]}"
        yield from answered("verdict", lambda: [_verdict(served, digest)], EDITED)
    yield unknown("journal", f"{said}; {gate}", TYPED)


def _said(line: HistoryLine) -> str:
    entry = line.entry
    typed = f", {entry.by!r} typed" if entry.by else ""
    why = f", because {entry.reason!r}" if entry.reason else ""
    what = f"entry {line.number}: {entry.action} to {entry.alias} at {entry.at}"
    return f"{what} by user {entry.user}{typed}{why}"


def _verdict(served: Served, digest: str) -> Finding:
    verdict = served.registry.verdict(served.version, digest)
    if verdict.digest != digest:
        said = f"the run's verdict is {verdict.digest[:12]}, the journal names {digest[:12]}"
        return differs("verdict", said, EDITED)
    passed = sum(check.answer == "pass" for check in verdict.checks)
    checks = f"{passed} of {len(verdict.checks)} checks passed"
    return holds("verdict", f"gate {verdict.gate}: {checks}, judged {verdict.judged_at}")
