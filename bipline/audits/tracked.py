"""The MLflow run that registered a version: its tags, parameters, figures and files, as packaged.

MLflow's database can be edited by whoever may write to it; the package's digest covers the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bipline.audits.findings import answered, compared, differs, holds, listed, unknown
from bipline.audits.opening import Opened, Served
from bipline.base.errors import BiplineError
from bipline.compression.corrections import PLAN_NAME
from bipline.delivery.evidence import EVALUATION, record_of
from bipline.delivery.export import CONFIGURATION_NAME
from bipline.delivery.registries.mlflow import DIGEST_TAG
from bipline.settings.base import flattened
from bipline.storage.digests import digest_file
from bipline.storage.manifest import LINEAGE
from bipline.storage.strict_json import read_json
from bipline.values.audit import Finding
from bipline.values.lineage import RunLineage
from bipline.values.metrics import final_metrics, metrics_of
from bipline.values.plan import read_plan
from bipline.values.reading import read_value
from bipline.values.recovery import RecoveryRecord

ABOUT = "MLflow run"
EDITED = "somebody edited the registry: what it says of this version is not to be relied on"
GONE = "parameters, metrics and verdicts are gone"
# Not compared: where local sources lay, of which the package tells their last names alone, and
# figures of others, which MLflow is not told.
LEFT_OUT = ("model", "texts.", "tasks.", "published")
# What was too long for MLflow ends so.
CUT = "…"


def run_findings(served: Served, opened: Opened) -> Iterator[Finding]:
    """Whether the run is there, and says what the package says."""
    try:
        run = served.registry.run(served.version)
    except BiplineError as error:
        yield differs(ABOUT, str(error), GONE)
        return
    name = f"{run.info.run_name} ({run.info.run_id})"
    if run.info.lifecycle_stage != "active":
        yield differs(ABOUT, f"{name} was deleted", f"its {GONE.removesuffix(' gone')} about to be")
    else:
        yield holds(ABOUT, f"{name}, {run.info.status.lower()}")
    if opened.manifest is not None:
        place = opened.place
        yield from answered("run's tags", lambda: _tags(run, place, served.digest), EDITED)
        yield from answered("run's parameters", lambda: [_parameters(run, place)], EDITED)
        yield from answered("run's figures", lambda: _figures(run, served, place), EDITED)
        yield from answered("run's files", lambda: [_files(served, place)], EDITED)


def lineage_runs(place: Path) -> list[RunLineage]:
    """The runs that a package's lineage names."""
    files = sorted((place / LINEAGE / "runs").glob("*.json"))
    return [read_value(file, RunLineage, "run") for file in files]


def _tags(run: Any, place: Path, digest: str) -> Iterator[Finding]:
    tags, about = run.data.tags, "run's tags"
    yield compared(
        about, f"{DIGEST_TAG} is the version's", {DIGEST_TAG: (tags.get(DIGEST_TAG), digest)}
    )
    found = {each.run_id: each for each in lineage_runs(place)}
    if not found:
        return
    named = found.get(str(tags.get("zenml.run_id")))
    if named is None:
        said = f"zenml.run_id says {tags.get('zenml.run_id')}, the lineage {', '.join(found)}"
        yield differs(about, said, EDITED)
        return
    known = {"zenml.run_name": named.run_name, **named.code}
    pairs: dict[str, tuple[object, object]] = {
        name: (tags.get(name), value) for name, value in known.items()
    }
    yield compared(about, f"the pipeline run and {len(named.code)} facts of its code", pairs)


def _parameters(run: Any, place: Path) -> Finding:
    """Each parameter that the configuration tells, but for what is left out."""
    kept = flattened(read_json(place / CONFIGURATION_NAME, "configuration", ""))
    known = {key: value for key, value in kept.items() if not key.startswith(LEFT_OUT)}
    given = {key: value for key, value in run.data.params.items() if not value.endswith(CUT)}
    return _same("run's parameters", given, known, "configuration")


def _figures(run: Any, served: Served, place: Path) -> Iterator[Finding]:
    """Each metric of run and registered model beside the records in the package."""
    value = read_json(place / EVALUATION, "evaluation", "")
    records = {name: record_of(each, name) for name, each in value["records"].items()}
    told = value.get("recovery")
    recovery = RecoveryRecord.model_validate_json(json.dumps(told)) if told else None
    plan = read_plan(place / PLAN_NAME)
    of_model = {each.key: each.value for each in served.version.model.metrics or ()}
    yield _same("run's figures", run.data.metrics, metrics_of(records, plan, recovery), "records")
    yield _same("model's figures", of_model, final_metrics(records, value["packaged"]), "records")


def _same(about: str, told: Mapping[str, Any], known: Mapping[str, Any], where: str) -> Finding:
    """Whether MLflow tells each of these as the package's ``where`` does."""
    changed = [
        f"{name} {told[name]}, the package {value}"
        for name, value in known.items()
        if name in told and told[name] != value
    ]
    if changed:
        return differs(about, f"MLflow says {listed(changed)}", EDITED)
    if missing := [name for name in known if name not in told]:
        said = f"MLflow does not tell {listed(missing)}"
        return unknown(about, said, "an older bipline told less, or somebody removed it")
    return holds(about, f"all {len(known)} are as in the package's {where}")


def _files(served: Served, place: Path) -> Finding:
    """The run's copies of plan and evaluation, which its page shows."""
    own = served.registry.run_file(served.version, PLAN_NAME)
    kept = digest_file(place / PLAN_NAME)
    return compared("run's files", f"{PLAN_NAME} is the package's",
                    {PLAN_NAME: (own, kept)})  # fmt: skip
