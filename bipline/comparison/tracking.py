"""A comparison in MLflow: one run with the report, and a child run for every row.

A child holds what was tried as parameters and what came out as metrics, so that MLflow's own
tables and plots compare them. A refused row is a child that says why.
"""

from __future__ import annotations

from collections.abc import Mapping
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
from bipline.values.comparison import Comparison, Row
from bipline.values.figures import Figure, figures_of, row_figures


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
            for model in comparison.models.values():
                dense = _values(figures_of(model.record), "dense.")
                mlflow.log_metrics(dense, run_id=run.info.run_id)
            for number, row in enumerate(comparison.rows, start=1):
                _log_row(mlflow, row, f"row-{number:03d}")
            return str(run.info.run_id)


def _log_row(mlflow: ModuleType, row: Row, name: str) -> None:
    with mlflow.start_run(run_name=name, nested=True):
        for batch in _batches(_tried(row), LONGEST_TAG):
            mlflow.log_params(batch)
        if row.measured:
            mlflow.log_metrics(_values(row_figures(row)))
            mlflow.set_tags({"plan_digest": row.measured.plan_digest})
        else:
            mlflow.set_tags({"refusal": _cut(row.refusal or "", LONGEST_TAG)})


def _tried(row: Row) -> dict[str, str]:
    tried, choices = row.combination, ("criterion", "allocation", "compensation")
    plain = tried.model_dump(mode="json", exclude={*choices, "alias"})
    named = {name: getattr(tried, name).label for name in choices}
    aliased = {"alias": tried.alias} if tried.alias else {}
    return {name: str(value) for name, value in {**plain, **named, **aliased}.items()}


def _values(figures: Mapping[str, Figure], prefix: str = "") -> dict[str, float]:
    return {f"{prefix}{name}": float(figure.value) for name, figure in figures.items()}
