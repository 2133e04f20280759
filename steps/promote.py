"""Promote: the package becomes a version in the registry, tracked as one MLflow run.

ZenML's experiment tracker opens the MLflow run, named like the pipeline run, and writes its id
into this step's metadata; the tags name the pipeline run. So each leads to the other.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from zenml import get_step_context, log_metadata, step

from bipline.base.progress import heading
from bipline.delivery import registry as core
from bipline.settings.compress import PromoteSection
from bipline.storage.store import Handle
from bipline.values.plan import PruningPlan
from bipline.values.record import EvaluationRecord, RecoveryRecord
from bipline.values.summary import Registration
from steps.stage import FROM_JSON
from steps.tracked import flattened, measured, stage_seconds

VERSION = "1"


@step(enable_cache=False, experiment_tracker=True)
def promote(
    package: Handle,
    plan: PruningPlan,
    dense_record: EvaluationRecord,
    pruned_record: EvaluationRecord,
    section: Annotated[PromoteSection, FROM_JSON],
    config: dict[str, Any],
    provenance: dict[str, str],
    recovered_record: EvaluationRecord | None = None,
    recovery: RecoveryRecord | None = None,
) -> Annotated[Registration, "registration"]:
    """Register the package under its name and alias, with every number of the run."""
    heading("promote")
    records = {"dense": dense_record, "pruned": pruned_record}
    if recovered_record and recovery and recovery.accepted:
        records["recovered"] = recovered_record
    run = get_step_context().pipeline_run
    seconds, remembered = stage_seconds(run.id)
    told = {name: record.to_json_value() for name, record in records.items()}
    registered = core.track_and_register(
        package=Path(package.location),
        package_digest=package.digest,
        name=section.name,
        alias=section.alias,
        params=flattened(config),
        metrics={**seconds, **measured(records, plan, recovery)},
        artifacts={
            "pruning_plan.json": plan.to_json(),
            "evaluation.json": json.dumps(told, indent=1, sort_keys=True) + "\n",
            "config.json": json.dumps(config, indent=1, sort_keys=True) + "\n",
            "report.html": (Path(package.location) / "report.html").read_text(encoding="utf-8"),
        },
        tags={
            **provenance,
            "zenml.run_id": str(run.id),
            "zenml.run_name": run.name,
            "stages.not_run_again": ", ".join(remembered) or "none",
        },
    )
    log_metadata(
        {
            "version": VERSION,
            "output_digest": package.digest,
            "registration": registered.model_dump(),
        }
    )
    return registered
