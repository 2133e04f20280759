"""The sweep pipeline: one model in, many ways to prune it side by side.

Resolve once, calibrate once per seed, score once per criterion and seed. Then the steps fan out:
one for every row of the grid, each independent of the others. They meet again in one comparison
with its report, which is told to MLflow row by row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from zenml import pipeline
from zenml.enums import ExecutionMode
from zenml.models import StepRunResponse

from bipline.comparison.grid import compensations_of
from bipline.comparison.plan import sources_of, sweep_rows
from bipline.settings.stack import WHERE
from bipline.settings.sweep import SweepSettings
from bipline.values.combination import Combination
from pipelines.provenance import provenance
from steps.line import calibrate, resolve
from steps.notices import on_failure
from steps.rows import collect, dense, row, score_criterion, track
from steps.stage import output, store


@pipeline(name="sweep", execution_mode=ExecutionMode.FAIL_FAST)
def sweep(settings: SweepSettings) -> None:
    """Resolve, calibrate, score, then a step a row, and what they come to."""
    rows, compute = sweep_rows(settings), settings.compute
    protocol = settings.evaluate.protocol
    _, calibration_inputs, _, evaluation_inputs = resolve(sources_of(settings))
    compensations = compensations_of(rows)
    windows = {
        seed: calibrate(
            calibration_inputs, evaluation_inputs, settings.calibrate, compensations, seed,
            id=f"calibrate_seed_{seed}",
        )
        for seed in settings.grid.seeds
    }  # fmt: skip
    statistics = {
        name: score_criterion(evaluation_inputs, windows[each.seed], each, compute, id=name)
        for name, each in scorings(rows)
    }
    dense_record = dense(
        evaluation_inputs, protocol, compute, id="evaluate_dense", after=[*statistics.values()]
    )
    outcomes = [
        row(
            windows[each.seed], statistics[scoring_name(each)], dense_record, evaluation_inputs,
            each.unnamed, protocol, compute, id=f"row_{number:03d}",
        )
        for number, each in enumerate(rows, start=1)
    ]  # fmt: skip
    tried = [each.model_dump(mode="json") for each in rows]
    comparison, report = collect(
        outcomes, dense_record, calibration_inputs, windows[rows[0].seed], tried, settings.calibrate
    )
    described = settings.model_dump(mode="json", exclude={*WHERE})
    track(comparison, report, settings.select, described, provenance())


def configured(settings: SweepSettings, **options: Any) -> Any:
    """The pipeline with the options of a run."""
    tags = [f"seeds {len(settings.grid.seeds)}"]
    return sweep.with_options(tags=tags, on_failure=on_failure, **options)


def scorings(rows: Sequence[Combination]) -> list[tuple[str, Combination]]:
    """The names of the scoring steps, each with a row that needs it."""
    return list({scoring_name(each): each.unnamed for each in rows}.items())


def scoring_name(row: Combination) -> str:
    """The id of a row's scoring step: letters of the criterion, its options, and the seed."""
    label = "".join(letter if letter.isalnum() else "_" for letter in row.criterion.label)
    return f"score_{label}_seed_{row.seed}"


def summary(steps: Mapping[str, StepRunResponse]) -> dict[str, Any]:
    """What a run came to."""
    tracked, report = output(steps, "track", "tracked"), output(steps, "collect", "report")
    return {
        "mlflow_run_id": tracked.mlflow_run_id,
        "comparison": output(steps, "collect", "comparison"),
        "best": tracked.best,
        "report": str(store().open(report) / "comparison.html"),
    }
