"""The gate: whether a package may become what an alias points at.

Every check passes, fails or cannot tell, with its numbers and one sentence; what cannot tell does
not pass. A gate reads what was measured and stored; it measures nothing itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from bipline.delivery.evidence import Evidence
from bipline.delivery.limits import Subjects, limit_checks
from bipline.settings.gate import GateSettings, Requirements
from bipline.values.verdict import Answer, Champion, Check, Override, Verdict

DAY = 86400.0
# Clocks of machines that evaluate and that judge may differ by this much, in days.
CLOCK_DAYS = 1 / 24


@dataclass(frozen=True)
class Candidate:
    """A registered version that is to get an alias, and what its package tells."""

    model: str
    version: str
    alias: str
    evidence: Evidence


@dataclass(frozen=True)
class Incumbent:
    """The version that the alias points at now; ``evidence`` is None where it tells nothing."""

    version: str
    evidence: Evidence | None

    @property
    def champion(self) -> Champion:
        """As a verdict names it."""
        digest = self.evidence.package_digest if self.evidence else None
        return Champion(version=self.version, package_digest=digest)


def judge(
    gate: GateSettings,
    name: str,
    candidate: Candidate,
    incumbent: Incumbent | None,
    override: Override | None = None,
    now: datetime | None = None,
) -> Verdict:
    """The verdict of a gate, called ``name``, on a candidate beside the present champion."""
    now, evidence = now or datetime.now(UTC), candidate.evidence
    checks = [
        _package_check(evidence),
        *_protocol_checks(gate.requirements, evidence),
        *_requirement_checks(gate.requirements, evidence, now),
    ]
    subjects = _subjects(gate, evidence, incumbent)
    for limit in gate.limits:
        checks += limit_checks(limit, subjects)
    return Verdict(
        model=candidate.model,
        version=candidate.version,
        alias=candidate.alias,
        package_digest=evidence.package_digest,
        gate=name,
        gate_digest=gate.digest,
        champion=incumbent.champion if incumbent else None,
        records=_record_digests(evidence, incumbent),
        judged_at=now.isoformat(timespec="seconds"),
        passed=all(check.answer == "pass" for check in checks),
        checks=tuple(checks),
        override=override,
    )


def _subjects(gate: GateSettings, evidence: Evidence, incumbent: Incumbent | None) -> Subjects:
    """The models that limits are about, and why those are missing that are."""
    models, absent = dict(evidence.models), {}
    for model in ("packaged", "dense"):
        if problem := evidence.problems.get(model):
            absent[model] = f"the record of the {model} model cannot be read: {problem}"
    other = incumbent.evidence if incumbent else None
    if other and "packaged" in other.models and "package" not in other.problems:
        models["champion"] = other.models["packaged"]
    elif incumbent:
        absent["champion"] = f"version {incumbent.version}, the champion, has no record to read"
    else:
        absent["champion"] = "there is no champion to compare with"
    is_first = gate.first_champion and incumbent is None
    return Subjects(models, absent, is_first)


def _record_digests(evidence: Evidence, incumbent: Incumbent | None) -> dict[str, str]:
    found = evidence.record_digests
    digests = {"candidate": found.get("packaged"), "dense": found.get("dense")}
    if incumbent and incumbent.evidence:
        digests["champion"] = incumbent.evidence.record_digests.get("packaged")
    return {name: digest for name, digest in digests.items() if digest}


def _package_check(evidence: Evidence) -> Check:
    """Whether records, resolution and package are about the same models."""
    problem = evidence.problems.get("package")
    if problem:
        return _check("package", None, f"the records are not this package's: {problem}")
    if not {"packaged", "dense"} <= evidence.models.keys():
        return _check("package", None, "a record is missing")
    told = "the records are about the packaged and the dense model"
    if problem := evidence.problems.get("formats measured"):
        told += f"; what engines said of its formats cannot be read: {problem}"
    if not (exports := evidence.models["packaged"].exports):
        return _check("package", True, told)
    held = {name: f"{name} ({each.type})" for name, each in exports.items()}
    told += f" as hf has them; of {', '.join(held.values())} only figures that name it"
    return _check("package", True, told, {f"{name} type": exports[name].type for name in held})


def _protocol_checks(requirements: Requirements, evidence: Evidence) -> Iterator[Check]:
    digests = {each.record.protocol_digest for each in evidence.models.values()}
    packaged = evidence.models.get("packaged")
    numbers = {"digest": packaged.record.protocol_digest} if packaged else {}
    if len(evidence.models) < 2:
        yield _check("protocol", None, "a record is missing", numbers)
        return
    same = len(digests) == 1
    sentence = "dense and packaged model were evaluated under one protocol"
    if not same:
        sentence = "dense and packaged model were evaluated under different protocols"
    yield _check("protocol", same or None, sentence, numbers)
    if (wanted := requirements.protocol) is not None and packaged:
        called = packaged.record.protocol.get("name")
        holds = wanted in (called, packaged.record.protocol_digest)
        shown = called or packaged.record.protocol_digest[:12]
        told = f"evaluated under protocol {shown}; asked is {wanted:.40}"
        yield _check("protocol asked", holds, told, {**numbers, "asked": wanted})


def _requirement_checks(asked: Requirements, known: Evidence, now: datetime) -> Iterator[Check]:
    if asked.formats:
        yield _formats_check(asked.formats, known)
    if asked.signature:
        yield _signature_check(known)
    if asked.licences:
        licence, told = known.licence, ", ".join(asked.licences)
        if licence is None:
            yield _check("licence", None, f"the source names no licence; {told} will do")
        else:
            holds = licence.lower() in [each.lower() for each in asked.licences]
            sentence = f"the source's licence is {licence}; {told} will do"
            yield _check("licence", holds, sentence, {"licence": licence})
    if asked.evaluation_days is not None:
        yield _age_check(asked.evaluation_days, known, now)


def _formats_check(asked: tuple[str, ...], known: Evidence) -> Check:
    if known.formats is None:
        return _check("formats", None, "the package does not say which formats it holds")
    missing = [each for each in asked if each not in known.formats]
    held = ", ".join(known.formats) or "none"
    sentence = f"the package holds {held}; asked is {', '.join(asked)}"
    return _check("formats", not missing, sentence, {"missing": ", ".join(missing)})


def _signature_check(known: Evidence) -> Check:
    found = known.signature
    if found is None:
        return _check("signature", None, "no signature of the package is known")
    told = "holds" if found.holds else "does not hold"
    return _check("signature", found.holds, f"the signature by {found.key} {told}")


def _age_check(most: float, known: Evidence, now: datetime) -> Check:
    """Days since the older of the evaluations; one from the future tells nothing."""
    if known.evaluated_at is None:
        return _check("evaluation age", None, "nobody knows when it was evaluated")
    days = (now - known.evaluated_at).total_seconds() / DAY
    numbers = {"days": round(days, 3), "bound": most}
    if days < -CLOCK_DAYS:
        return _check("evaluation age", None, "it was evaluated in the future", numbers)
    sentence = f"evaluated {max(days, 0):.1f} days ago; at most {most:g} will do"
    return _check("evaluation age", days <= most, sentence, numbers)


def _check(
    name: str,
    holds: bool | None,
    sentence: str,
    numbers: Mapping[str, float | str] | None = None,
) -> Check:
    """A check that holds, does not, or, with None, cannot tell."""
    answers: dict[bool | None, Answer] = {True: "pass", False: "fail", None: "cannot tell"}
    return Check(name=name, answer=answers[holds], numbers=dict(numbers or {}), sentence=sentence)
