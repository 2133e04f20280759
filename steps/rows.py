"""Rows of a sweep: each is a step of its own; one step collects them, one tells the tracker."""

from __future__ import annotations

from typing import Annotated, Any

from zenml import get_step_context, log_metadata, step

from bipline.base.progress import heading, note
from bipline.comparison import collecting as stage
from bipline.comparison.rows import STAGE as ROW
from bipline.comparison.rows import RowInputs, measure_row, score_row
from bipline.comparison.selection import best
from bipline.settings.line import CalibrateSettings, ComputeSettings
from bipline.settings.protocol import Protocol
from bipline.settings.sweep import Selection
from bipline.storage.store import Handle
from bipline.values.combination import Combination
from bipline.values.comparison import Comparison, Outcome, Tracked
from bipline.values.record import EvaluationRecord
from bipline.values.resolution import Resolution
from steps.stage import Parameter, cached_by, context

row_fingerprint = ROW.fingerprint
collect_fingerprint = stage.STAGE.fingerprint


@cached_by("steps.line.score_fingerprint")
def score_criterion(
    model: Resolution,
    calibration: Handle,
    combination: Parameter[Combination],
    compute: Parameter[ComputeSettings],
) -> Annotated[Handle, "statistics"]:
    """Statistics of one criterion, or why there are none."""
    return score_row(context(compute, combination.seed), model, calibration, combination)


@cached_by(f"{__name__}.row_fingerprint")
def row(
    calibration: Handle,
    statistics: Handle,
    dense_record: EvaluationRecord,
    evaluation_inputs: Resolution,
    combination: Parameter[Combination],
    protocol: Parameter[Protocol],
    compute: Parameter[ComputeSettings],
) -> Annotated[Outcome, "outcome"]:
    """Allocate, compensate, prune, measure, forget: one model's figures, or why it cannot be."""
    inputs = RowInputs(
        given=evaluation_inputs,
        calibration=calibration,
        statistics=statistics,
        combination=combination,
        dense=dense_record,
        protocol=protocol,
    )
    return measure_row(context(compute, combination.seed), inputs)


@cached_by(f"{__name__}.collect_fingerprint")
def collect(
    outcomes: list[Outcome],
    dense_record: EvaluationRecord,
    calibration_inputs: Resolution,
    combinations: list[dict[str, Any]],
    settings: Parameter[CalibrateSettings],
) -> tuple[Annotated[Comparison, "comparison"], Annotated[Handle, "report"]]:
    """Put all rows beside each other, in the order of ``combinations``, and write the report."""
    tried = [Combination.model_validate(value) for value in combinations]
    comparison = stage.collected(tried, outcomes, dense_record, calibration_inputs, settings)
    return comparison, stage.store_report(context(), comparison)


@step(enable_cache=False, experiment_tracker=True)
def track(
    comparison: Comparison,
    report: Handle,
    settings: Parameter[Selection | None],
    config: dict[str, Any],
    provenance: dict[str, str],
) -> Annotated[Tracked, "tracked"]:
    """Pick the best, and tell MLflow: the report with this run, below it a run for every row."""
    heading("track")
    run = get_step_context().pipeline_run
    found = best(comparison, settings) if settings else None
    chosen = "none" if found is None else found.rows[0].combination.label
    tags = {"zenml.run_id": str(run.id), "zenml.run_name": run.name, "best": chosen}
    place = context().store.open(report)
    run_id = stage.track(comparison, place, config, {**provenance, **tags})
    note(f"{len(comparison.rows)} rows told; best: {chosen}")
    log_metadata({"output_digest": report.digest})
    return Tracked(mlflow_run_id=run_id, best=found)
