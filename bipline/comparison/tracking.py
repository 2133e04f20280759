"""A comparison in MLflow: one run with the report, and a child run for every row.

A child holds what was tried as parameters and what came out as metrics, so that MLflow's own
tables and plots compare them. A refused row is a child that says why.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import ModuleType

from bipline.delivery.registries.mlflow import (
    LONGEST_TAG,
    WORK_LIMITS,
    _batches,
    _cut,
    _limited,
    _log_run,
    _mlflow,
    _probe,
    _run,
    _translated,
)
from bipline.values.comparison import Comparison, Measured, Row


def track_comparison(
    comparison: Comparison,
    *,
    params: Mapping[str, str],
    tags: Mapping[str, str],
    artifacts: Mapping[str, str],
) -> str:
    """Log to the active MLflow run, or to a new one; the id of that run.

    ``artifacts`` maps file names to texts. Raises EnvironmentFailure when server or database
    cannot be reached, InvalidInput for what MLflow refuses.
    """
    mlflow = _mlflow()
    with _translated("MLflow"):
        _probe(mlflow)
        with _limited(WORK_LIMITS), _run(mlflow) as run:
            _log_run(mlflow, run.info.run_id, params, artifacts, tags)
            mlflow.log_metrics(dict(_dense(comparison)), run_id=run.info.run_id)
            for number, row in enumerate(comparison.rows, start=1):
                _log_row(mlflow, row, f"row-{number:03d}")
            return str(run.info.run_id)


def _log_row(mlflow: ModuleType, row: Row, name: str) -> None:
    with mlflow.start_run(run_name=name, nested=True):
        for batch in _batches(_tried(row), LONGEST_TAG):
            mlflow.log_params(batch)
        if row.measured:
            mlflow.log_metrics(dict(_figures(row, row.measured)))
            mlflow.set_tags({"plan_digest": row.measured.plan_digest})
        else:
            mlflow.set_tags({"refusal": _cut(row.refusal or "", LONGEST_TAG)})


def _tried(row: Row) -> dict[str, str]:
    tried, choices = row.combination, ("criterion", "allocation", "compensation")
    plain = tried.model_dump(mode="json", exclude={*choices, "alias"})
    named = {name: getattr(tried, name).label for name in choices}
    aliased = {"alias": tried.alias} if tried.alias else {}
    return {name: str(value) for name, value in {**plain, **named, **aliased}.items()}


def _figures(row: Row, measured: Measured) -> Iterator[tuple[str, float]]:
    yield "parameters", float(measured.parameters.after)
    yield "parameters_ratio", measured.parameters.ratio
    yield "reached_blocks", measured.ratio.reached_blocks
    yield "reached_total", measured.ratio.reached_total
    yield "file_bytes", float(measured.file_bytes)
    yield "seconds", row.cost.total_seconds
    yield "peak_anonymous_bytes", float(row.cost.peak_anonymous_bytes)
    if did := measured.compensated:
        yield "block_error_without", sum(did.error_without)
        yield "block_error", sum(did.error)
    for text, found in measured.perplexity.items():
        yield f"perplexity.{text}", found.value
        yield f"nll.{text}", found.nll
        yield f"perplexity_change.{text}", measured.change[text].perplexity
        yield f"nll_change.{text}", measured.change[text].nll


def _dense(comparison: Comparison) -> Iterator[tuple[str, float]]:
    for held in comparison.models.values():
        yield "dense.parameters", float(held.record.parameters)
        for text, found in held.record.perplexity.items():
            yield f"dense.perplexity.{text}", found.value
