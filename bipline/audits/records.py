"""What the package tells of its making: settings, code, runs, evaluations and verdicts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from bipline.audits.findings import answered, differs, holds, unknown
from bipline.audits.tracked import lineage_runs
from bipline.compression.corrections import PLAN_NAME
from bipline.delivery.evidence import Measured, read_evidence
from bipline.delivery.export import CONFIGURATION_NAME
from bipline.storage.digests import digest_file
from bipline.storage.manifest import LINEAGE, read_manifest
from bipline.storage.strict_json import read_json
from bipline.values.audit import Finding
from bipline.values.plan import read_plan
from bipline.values.reading import read_value
from bipline.values.verdict import Verdict

NOT_CHECKED = "names, hosts and times are what the run wrote; only a signature says by whom"


def record_findings(place: Path) -> Iterator[Finding]:
    """Plan, settings, evaluations, runs and verdicts, each on its own."""
    yield from answered("plan", lambda: [_plan(place)])
    yield from answered("settings", lambda: [_settings(place)])
    yield from answered("evaluation", lambda: _evaluations(place), "its figures are not its own")
    yield from answered("runs", lambda: _runs(place))
    yield from answered("verdicts", lambda: _verdicts(place))


def _plan(place: Path) -> Finding:
    plan = read_plan(place / PLAN_NAME)
    if digest_file(place / PLAN_NAME) != digest_file(place / "hf" / PLAN_NAME):
        return differs("plan", f"{PLAN_NAME} and hf/{PLAN_NAME} are two plans")
    return holds("plan", f"digest {plan.digest[:12]}, of tensors {plan.tensor_digest[:12]}")


def _settings(place: Path) -> Finding:
    if not (place / CONFIGURATION_NAME).is_file():
        return unknown("settings", f"no {CONFIGURATION_NAME}", "the run cannot be asked for again")
    value = read_json(place / CONFIGURATION_NAME, "configuration")
    told = [
        f"{section}.{name} {json.dumps(each)}"
        for section, names in {"score": ["criterion"], "allocate": ["ratio", "allocation"],
                               "compensate": ["compensation"], "recover": ["enabled"]}.items()
        for name in names
        if (each := dict(value.get(section) or {}).get(name)) is not None
    ]  # fmt: skip
    return holds("settings", ", ".join([*told, f"seed {value.get('seed')}"]))


def _evaluations(place: Path) -> Iterator[Finding]:
    manifest = read_manifest(place)
    evidence = read_evidence(lambda name: (place / name).read_bytes(), str(place), manifest.digest)
    for about, problem in evidence.problems.items():
        yield differs(f"evaluation of {about}", problem, "its figures are not its own")
    for name, measured in evidence.models.items():
        yield holds(f"evaluation of {name}", _figures(measured))


def _figures(measured: Measured) -> str:
    record = measured.record
    figures = [f"perplexity {text} {each.value:.2f}" for text, each in record.perplexity.items()]
    figures += [f"acc {task} {each.acc:.3f}" for task, each in record.tasks.items()]
    name = record.protocol.get("name") or "of its own"
    protocol = f"protocol {name}, {record.protocol_digest[:12]}"
    return f"{', '.join(figures) or 'nothing measured'}; {protocol}"


def _runs(place: Path) -> Iterator[Finding]:
    found = lineage_runs(place)
    if not found:
        yield unknown("runs", "the lineage names no run", "who made it, when and where is not told")
    for run in found:
        commit = run.code.get("git.commit", "unknown")
        dirty = ", with uncommitted changes" if run.code.get("git.dirty") == "true" else ""
        libraries = ", ".join(
            f"{name.removeprefix('library.')} {each}"
            for name, each in run.code.items()
            if name in ("library.torch", "library.transformers")
        )
        said = (
            f"{run.run_name} on {run.host}, {run.started:%Y-%m-%d %H:%M} to {run.ended:%H:%M}; "
            f"commit {commit[:12]}{dirty}; {libraries}"
        )
        yield unknown("run", said, NOT_CHECKED)


def _verdicts(place: Path) -> Iterator[Finding]:
    for file in sorted((place / LINEAGE / "verdicts").glob("*.json")):
        found = read_value(file, Verdict, "verdict")
        if Path(found.file_name).name != file.name:
            yield differs("verdict", f"{file.name} is not the verdict of its name")
        else:
            passed = "passed" if found.passed else "refused"
            yield holds("verdict", f"{passed} for {found.alias}, digest {found.digest[:12]}")
