"""The sweep pipeline: one model in, many ways to prune it side by side.

Resolve once, calibrate once per seed, score once per criterion and seed. Then the steps fan out:
one for every row of the grid, each independent of the others. They meet again in one comparison
with its report, which is told to MLflow row by row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from zenml import pipeline
from zenml.enums import ExecutionMode

from bipline.face.sweep_plan import combinations_of
from bipline.settings.sweep import SweepConfig
from bipline.values.combination import Combination
from pipelines.provenance import provenance
from steps.calibrate import calibrate
from steps.evaluate import evaluate_dense
from steps.resolve import resolve
from steps.sweep import RowSection, collect, measure_row, score_criterion, track


@pipeline(name="sweep", execution_mode=ExecutionMode.FAIL_FAST)
def sweep(config: SweepConfig) -> None:
    """Resolve, calibrate, score, then a step a row, and what they come to."""
    rows = combinations_of(config)
    model, calibration_inputs, _, evaluation_inputs = resolve(**names_of(config))
    windows = {
        seed: calibrate(
            calibration_inputs, evaluation_inputs, config.calibration(seed),
            id=f"calibrate_seed_{seed}",
        )
        for seed in config.grid.seeds
    }  # fmt: skip
    statistics = {name: scored(model, windows, row, name, config) for name, row in scorings(rows)}
    dense_record = evaluate_dense(
        evaluation_inputs, config.evaluation, after=[*statistics.values()]
    )
    outcomes = [
        measure_row(
            model, windows[row.seed], statistics[scoring_name(row)], dense_record,
            evaluation_inputs, section_of(config, row), id=f"row_{number:03d}",
        )
        for number, row in enumerate(rows, start=1)
    ]  # fmt: skip
    tried = [row.model_dump(mode="json") for row in rows]
    comparison, report = collect(
        outcomes, dense_record, calibration_inputs, tried, config.calibrate
    )
    described = config.model_dump(mode="json", exclude={"state"})
    track(comparison, report, config.select, described, provenance())


def scored(
    model: Any, windows: dict[int, Any], row: Combination, name: str, config: SweepConfig
) -> Any:
    """The one scoring step of all rows with this criterion and seed."""
    return score_criterion(
        model, windows[row.seed], config.scoring(row.criterion, row.seed), id=name
    )


def scorings(rows: Sequence[Combination]) -> list[tuple[str, Combination]]:
    """The names of the scoring steps, each with a row that needs it."""
    return list({scoring_name(row): row for row in rows}.items())


def scoring_name(row: Combination) -> str:
    """The id of a row's scoring step: letters of the criterion, its options, and the seed."""
    label = "".join(letter if letter.isalnum() else "_" for letter in row.criterion.label)
    return f"score_{label}_seed_{row.seed}"


def section_of(config: SweepConfig, row: Combination) -> RowSection:
    """What of the configuration a row depends on; by whatever name it was asked for."""
    return RowSection(combination=row.unnamed, compute=config.compute, evaluate=config.evaluate)


def names_of(config: SweepConfig) -> dict[str, Any]:
    """What is resolved: every name of the run, and which stage reads which text."""
    return {
        "model": config.model,
        "texts": config.texts,
        "tasks": {},
        "calibration_texts": list(config.calibrate.texts),
        "recovery_texts": [],
        "evaluation_texts": list(config.evaluate.texts),
        "evaluation_tasks": [],
    }
