"""A comparison in MLflow: one run with the report, and a child run for every row.

A child holds what was tried as parameters and what came out as metrics, so that MLflow's own
tables and plots compare them. A refused row is a child that says why.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from bipline.delivery.page import told_of_run
from bipline.delivery.registries.mlflow_run import log_run, run_of
from bipline.delivery.registries.mlflow_service import (
    LONGEST_TAG,
    WORK_LIMITS,
    batches,
    cut,
    limited,
    mlflow_library,
    probe,
    translated,
)
from bipline.delivery.run_facts import run_facts
from bipline.settings.base import flattened
from bipline.values.comparison import Comparison, Row
from bipline.values.figures import figures_of, row_figures, values

PAGE = "comparison.html"


def track_comparison(
    comparison: Comparison, report: Path, config: Mapping[str, Any], tags: Mapping[str, str]
) -> str:
    """Log to the active MLflow run, or to a new one; the id of that run.

    ``report`` is the folder of a comparison's files. Raises EnvironmentFailure when server or
    database cannot be reached, InvalidInput for what MLflow refuses.
    """
    files = {path.name: path.read_text(encoding="utf-8") for path in report.glob("comparison.*")}
    files["config.json"] = json.dumps(config, indent=1, sort_keys=True) + "\n"
    mlflow = mlflow_library()
    with translated("MLflow"):
        probe(mlflow.get_tracking_uri())
        with limited(WORK_LIMITS), run_of(mlflow) as run:
            facts = run_facts(run, dict(tags), mlflow.get_tracking_uri())
            if PAGE in files:
                files[PAGE] = told_of_run(files[PAGE], facts)
            log_run(mlflow, run.info.run_id, flattened(config), files, tags)
            for model in comparison.models.values():
                dense = values(figures_of(model.record), "dense.")
                mlflow.log_metrics(dense, run_id=run.info.run_id)
            for number, row in enumerate(comparison.rows, start=1):
                _log_row(mlflow, row, f"row-{number:03d}")
            return str(run.info.run_id)


def _log_row(mlflow: ModuleType, row: Row, name: str) -> None:
    with mlflow.start_run(run_name=name, nested=True):
        tried = {name: str(value) for name, value in row.combination.written().items()}
        if not row.combination.alias:
            del tried["alias"]
        for batch in batches(tried, LONGEST_TAG):
            mlflow.log_params(batch)
        if row.measured:
            mlflow.log_metrics(values(row_figures(row)))
            mlflow.set_tags({"plan_digest": row.measured.plan_digest})
        else:
            mlflow.set_tags({"refusal": cut(row.refusal or "", LONGEST_TAG)})
