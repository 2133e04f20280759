"""Rows of a sweep: each is a step of its own; one step collects them, one tells the tracker."""

from __future__ import annotations

from typing import Annotated, Any

from zenml import get_step_context, log_metadata, step

from bipline.base.progress import heading, note
from bipline.comparison.files import STAGE as COLLECT
from bipline.comparison.files import store_results
from bipline.comparison.inputs import comparison_of
from bipline.comparison.rows import SPEED as ROW  # with all that may be measured of a row
from bipline.comparison.rows import RowInputs, dense_record, measure_row, score_rows
from bipline.comparison.selection import best
from bipline.comparison.tracking import track_comparison
from bipline.settings.line import CalibrateSettings, ComputeSettings
from bipline.settings.protocol import Protocol
from bipline.settings.sweep import Selection
from bipline.storage.store import Handle
from bipline.values.combination import Combination
from bipline.values.comparison import Comparison, Outcome, Row, Tracked
from bipline.values.record import EvaluationRecord
from bipline.values.resolution import Resolution
from steps.stage import Parameter, cached_by, context

row_fingerprint = ROW.fingerprint
collect_fingerprint = COLLECT.fingerprint


@cached_by("steps.line.score_fingerprint")
def score_criterion(
    model: Resolution,
    calibration: Handle,
    combination: Parameter[Combination],
    compute: Parameter[ComputeSettings],
) -> Annotated[Handle, "statistics"]:
    """Statistics of one criterion, or why there are none."""
    here = context(compute, combination.seed)
    [statistics] = score_rows(here, model, calibration, (combination,))
    return statistics


@cached_by("steps.line.evaluate_fingerprint")
def dense(
    evaluation_inputs: Resolution,
    protocol: Parameter[Protocol],
    compute: Parameter[ComputeSettings],
) -> Annotated[EvaluationRecord, "dense_record"]:
    """The dense model's texts and its tasks, each found where they were measured before."""
    return dense_record(context(compute), evaluation_inputs, protocol)


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
    calibration: Handle,
    combinations: list[dict[str, Any]],
    settings: Parameter[CalibrateSettings],
) -> tuple[Annotated[Comparison, "comparison"], Annotated[Handle, "report"]]:
    """Put all rows beside each other, in the order of ``combinations``, and write the report."""
    tried = [Combination.model_validate(value) for value in combinations]
    first, texts = tried[0], [calibration_inputs.texts[name] for name in settings.texts]
    models = {first.model: (calibration_inputs.model, dense_record)}
    rows = [Row.of(*pair) for pair in zip(tried, outcomes, strict=True)]
    comparison = comparison_of(models, {first.calibration: (texts, calibration)}, rows)
    return comparison, store_results(context(), comparison)


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
    run_id = track_comparison(comparison, place, config, {**provenance, **tags})
    note(f"{len(comparison.rows)} rows told; best: {chosen}")
    log_metadata({"output_digest": report.digest})
    return Tracked(mlflow_run_id=run_id, best=found)
