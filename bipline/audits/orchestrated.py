"""What ZenML tells of the runs that a package names, beside the package and the registry.

ZenML is asked by whoever has it: this room knows its answers alone. Its database and its artifacts
are two places, and a package is a third: an edit of one of them is seen in the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from bipline.audits.findings import answered, compared, differs, holds, listed, unknown
from bipline.audits.opening import Opened
from bipline.audits.tracked import lineage_runs
from bipline.compression.corrections import PLAN_NAME
from bipline.delivery.evidence import EVALUATION, RESOLUTION, record_of
from bipline.storage.digests import digest_json
from bipline.storage.strict_json import read_json
from bipline.values.audit import Finding
from bipline.values.lineage import RunLineage, StageLineage
from bipline.values.plan import read_plan
from bipline.values.record import EvaluationRecord
from bipline.values.resolution import read_resolution

ABOUT = "ZenML run"
DELETED = "its steps, artifacts and times rest on what the package says alone"
ROW = "somebody edited ZenML's database, or the lineage: one of both is not to be relied on"
SWAPPED = "somebody changed an artifact of the run: what ZenML shows of it is not what was made"
NOT_ASKED = "what the orchestrator kept of the run is not compared; give --state or --stack"
# Plans by the step that makes the last one.
PLAN_STEPS = ("allocate", "given_plan", "given_corrections", "compensate")


@dataclass(frozen=True)
class ToldArtifact:
    """An output of a step, as it is stored now; ``value`` is :func:`comparable`.

    ``problem`` says that it is not of the digest in ZenML's database; ``unread`` why it cannot be
    read at all.
    """

    step: str
    name: str
    value: str = ""
    problem: str = ""
    unread: str = ""


@dataclass(frozen=True)
class ToldRun:
    """A run as ZenML tells it; stages as the lineage has them, from ZenML's rows."""

    run_name: str
    status: str
    stages: Mapping[str, StageLineage]
    artifacts: Sequence[ToldArtifact]
    registration: Mapping[str, Any]


# What ZenML knows of runs by their ids; a run that it does not know is left out.
AskRuns = Callable[[Sequence[str]], Mapping[str, ToldRun]]


def orchestrated_findings(opened: Opened, ask: AskRuns | None) -> Iterator[Finding]:
    """Each run of the lineage as ZenML has it."""
    runs = lineage_runs(opened.place)
    if not runs:
        return
    if ask is None:
        yield unknown(ABOUT, "ZenML was not asked", NOT_ASKED)
        return
    known = ask([run.run_id for run in runs])
    for run in runs:
        if run.run_id not in known:
            said = f"ZenML knows no run {run.run_name} ({run.run_id}): it was deleted, or is of "
            yield differs(ABOUT, f"{said}another stack", DELETED)
        else:
            yield from _run(run, known[run.run_id], opened)


def _run(run: RunLineage, told: ToldRun, opened: Opened) -> Iterator[Finding]:
    yield compared(ABOUT, f"{run.run_name}, {told.status}", {"name": (told.run_name, run.run_name)})
    yield _stages(run, told)
    yield from answered("ZenML artifacts", lambda: _artifacts(told, opened), SWAPPED)
    if told.registration:
        yield _registration(told, opened)


def _stages(run: RunLineage, told: ToldRun) -> Finding:
    changed = [
        f"{name}: {field} {_shown(getattr(told.stages.get(name), field, None))}, the lineage "
        f"{_shown(getattr(stage, field))}"
        for name, stage in run.stages.items()
        for field in ("status", "key", "digest")
        if getattr(told.stages.get(name), field, None) != getattr(stage, field)
    ]
    if changed:
        return differs("ZenML steps", f"ZenML says {listed(changed)}", ROW)
    return holds("ZenML steps", f"{len(run.stages)} steps with the lineage's keys and digests")


def _shown(value: object) -> str:
    return "nothing" if value is None else str(value)[:12]


def _artifacts(told: ToldRun, opened: Opened) -> Iterator[Finding]:
    """Every output: what is stored is what was saved, and what the package has of the same."""
    expected, about = _of_package(opened, told), "ZenML artifacts"
    changed = []
    for each in told.artifacts:
        name = f"{each.step}.{each.name}"
        if each.unread:
            yield unknown(about, f"{name}: {each.unread}", "what is stored of it is not compared")
        elif each.problem:
            changed.append(f"{name}: {each.problem}")
        elif expected.get(name, each.value) != each.value:
            changed.append(f"{name} is not the one that was packaged")
    for sentence in changed:
        yield differs(about, sentence, SWAPPED)
    if not changed:
        also = sum(
            f"{each.step}.{each.name}" in expected for each in told.artifacts if not each.unread
        )
        read = sum(not each.unread for each in told.artifacts)
        said = f"{read} outputs are what was saved, {also} of them as packaged"
        yield holds(about, said)


def _of_package(opened: Opened, told: ToldRun) -> dict[str, str]:
    """What lies in the package too, by step and output, as :func:`comparable`."""
    place = opened.place
    value = read_json(place / EVALUATION, "evaluation", "")
    records = {name: record_of(each, name) for name, each in value["records"].items()}
    steps = {each.step for each in told.artifacts}
    planned = [step for step in PLAN_STEPS if step in steps][-1:]
    return {
        "resolve.model": comparable(read_resolution(place / RESOLUTION).subset()),
        "export.package": str(opened.digest),
        **{f"{step}.plan": comparable(read_plan(place / PLAN_NAME)) for step in planned},
        **{f"evaluate_{name}.{name}_record": comparable(each) for name, each in records.items()},
    }


def comparable(value: BaseModel) -> str:
    """A digest of a value that is the same in ZenML and in the package.

    Items lie in a file of their own there, and speeds are measured after a record was made.
    """
    if isinstance(value, EvaluationRecord):
        return digest_json(value.model_dump(mode="json", exclude={"items", "speed"}))
    own = getattr(value, "digest", None)
    return own if isinstance(own, str) else digest_json(value.model_dump(mode="json"))


def _registration(told: ToldRun, opened: Opened) -> Finding:
    """What the step that registered the package tells of the version."""
    kept, pairs = told.registration, dict[str, tuple[object, object]]()
    if opened.served is not None:
        version = opened.served.version
        if kept.get("model_name") == opened.served.registry.name and not kept.get("reused"):
            pairs = {
                "MLflow run": (kept.get("mlflow_run_id"), version.run_id),
                "version": (str(kept.get("version")), version.number),
            }
    said = f"registered as {kept.get('model_name')} version {kept.get('version')}"
    return compared("ZenML registration", said, pairs)
