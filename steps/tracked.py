"""What the tracker is told about a run: seconds per stage, measures, and the configuration."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any
from uuid import UUID

from zenml.client import Client
from zenml.enums import ExecutionStatus
from zenml.models import StepRunResponse

from bipline.values.plan import PruningPlan
from bipline.values.record import EvaluationRecord, RecoveryRecord
from bipline.values.summary import StageStatus


def step_runs(run_id: UUID) -> list[StepRunResponse]:
    """The steps of a pipeline run in the order they started."""
    found = Client().list_run_steps(pipeline_run_id=run_id, size=100, hydrate=True).items
    return sorted(found, key=lambda run: run.created)


def seconds_of(run: StepRunResponse) -> float:
    """How long a step took, everything ZenML did around it included; 0 when it was cached."""
    if run.status == ExecutionStatus.CACHED or not (run.start_time and run.end_time):
        return 0.0
    return round((run.end_time - run.start_time).total_seconds(), 3)


def status_of(run: StepRunResponse) -> StageStatus:
    """Whether a step was skipped by ZenML, answered from the Store, or run."""
    if run.status == ExecutionStatus.CACHED:
        return "cached"
    return "reused" if run.run_metadata.get("reused") else "completed"


def stage_seconds(run_id: UUID) -> tuple[dict[str, float], list[str]]:
    """Seconds of every finished step as metrics, and the steps that were not run again."""
    finished = [run for run in step_runs(run_id) if run.end_time]
    seconds = {f"stage_seconds.{run.name}": seconds_of(run) for run in finished}
    return seconds, [run.name for run in finished if status_of(run) != "completed"]


def measured(
    records: Mapping[str, EvaluationRecord], plan: PruningPlan, recovery: RecoveryRecord | None
) -> dict[str, float]:
    """Every measure of the records, and the ratio reached, by dotted name."""
    metrics = {
        "ratio.reached_blocks": plan.budget.reached_blocks,
        "ratio.reached_total": plan.budget.reached_total,
    }
    if recovery is not None:
        metrics["recovery.accepted"] = float(recovery.accepted)
    for name, record in records.items():
        metrics.update(_measures(name, record))
    return metrics


def _measures(name: str, record: EvaluationRecord) -> Iterator[tuple[str, float]]:
    yield f"{name}.parameters", float(record.parameters)
    yield f"{name}.file_bytes", float(record.file_bytes)
    for text, perplexity in record.perplexity.items():
        yield f"{name}.perplexity.{text}", perplexity.value
    for task, result in record.tasks.items():
        yield f"{name}.accuracy.{task}", result.acc
    if record.speed:
        yield f"{name}.prefill_tokens_per_second", record.speed.prefill_tokens_per_second
        yield f"{name}.decode_tokens_per_second", record.speed.decode_tokens_per_second


def flattened(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """A nested configuration as text by dotted name."""
    flat: dict[str, str] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            flat.update(flattened(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value if isinstance(value, str) else json.dumps(value)
    return flat
