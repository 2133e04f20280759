"""The sweep pipeline on the real local stack: rows, child runs, the best, and what is cached."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bipline.base.errors import InvalidInput
from bipline.settings.sweep import SweepSettings
from bipline.values.comparison import SweepSummary
from tests.command import run as command
from tests.comparing import Bench, figures
from tests.pipeline.conftest import inside

pytestmark = pytest.mark.slow

Sweep = Callable[..., SweepSummary]
GRID: dict[str, Any] = {
    "criteria": ("wanda-sp", "flap:metric=ifv", "saap"), "ratios": (0.3, 0.98), "seeds": (0, 1),
    "methods": ("wanda-sp//obs",),
}  # fmt: skip
NEVER_CACHED = {"resolve", "track"}
ROWS = [f"row_{number:03d}" for number in range(1, 17)]


@pytest.fixture(scope="module")
def bench(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench.of(llama, tmp_path_factory.mktemp("sweep"))


def configuration(bench: Bench, **sections: Any) -> SweepSettings:
    values: dict[str, Any] = {
        "model": str(bench.model),
        "texts": {"calibration": str(bench.folder / "calibration.txt"), **bench.texts},
        "state": str(bench.folder / "state"),
        "grid": GRID,
        "calibrate": {"samples": 16, "seqlen": 16},
        "compute": {"device": "cpu"},
        "evaluate": {"texts": ("one", "two"), "protocol": {"seqlen": 16}},
        "select": {"minimise": "perplexity.one", "at_most": {"parameters_ratio": 0.9}},
    }
    return SweepSettings.model_validate({**values, **sections})


@pytest.fixture(scope="module")
def sweep(bench: Bench) -> Sweep:
    """Run a sweep in a state of its own."""
    from pipelines.run import run_sweep

    return lambda **sections: run_sweep(configuration(bench, **sections))


@pytest.fixture(scope="module")
def first(sweep: Sweep) -> SweepSummary:
    return sweep()


def ran(summary: SweepSummary) -> set[str]:
    return {stage.name for stage in summary.stages if stage.status == "completed"}


def test_every_row_is_a_step_and_every_score_only_one(first: SweepSummary) -> None:
    names = [stage.name for stage in first.stages]
    scores = [f"score_{name}_seed_{seed}" for name in ("wanda_sp", "flap_metric_ifv", "saap")
              for seed in (0, 1)]  # fmt: skip
    assert sorted(names) == sorted(
        ["resolve", "calibrate_seed_0", "calibrate_seed_1", *scores, "evaluate_dense", *ROWS,
         "collect", "track"]
    )  # fmt: skip
    assert names.index("evaluate_dense") < names.index("row_001")
    assert first.status == "completed"
    assert ran(first) == set(names)


def test_rows_are_those_of_compare(
    first: SweepSummary, bench: Bench, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = bench.arguments(
        "compared", criteria=",".join(GRID["criteria"]), method=list(GRID["methods"]),
        ratios="0.3,0.98", seeds="0,1", samples=16,
    )  # fmt: skip
    assert command(capfd, *arguments).code == 0
    compared = json.loads((bench.folder / "compared" / "comparison.json").read_text())
    found = figures(first.comparison)
    for ours, theirs in zip(found, figures(compared), strict=True):
        # The command shares passes between criteria; what comes out is the same.
        assert {**ours, "sums_from": None} == {**theirs, "sums_from": None}
    assert [bool(row["measured"]) for row in found].count(True) == 6
    assert all(row["measured"]["compensated"] for row in found[-4:-2])


def test_refusals_tell_their_reason_and_stop_nothing(first: SweepSummary) -> None:
    reasons = {
        (row.combination.criterion.name, row.combination.ratio): row.refusal
        for row in first.comparison.rows
    }
    assert "windows are too few" in (reasons["saap", 0.3] or "")
    assert "cannot be reached" in (reasons["saap", 0.98] or "")
    assert reasons["wanda-sp", 0.3] is None


def test_the_best_row_meets_the_limits(first: SweepSummary) -> None:
    assert first.best is not None
    means: dict[str, float] = {}
    for row in first.comparison.rows:
        if row.measured:
            name = row.combination.method
            means[name] = means.get(name, 0.0) + row.measured.perplexity["one"].value / 2
    tried = first.best.rows[0].combination
    assert first.best.value == pytest.approx(min(means.values()), rel=1e-12)
    assert means[tried.method] == pytest.approx(first.best.value, rel=1e-12)
    for row in first.best.rows:
        assert row.measured and row.measured.parameters.ratio <= 0.9
        stages = {"score", "allocate", "prune", "evaluate"}
        assert row.cost.seconds.keys() == stages | ({"compensate"} if tried.compensates else set())


def test_mlflow_has_a_child_run_for_every_row(first: SweepSummary, bench: Bench) -> None:
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{bench.folder / 'state' / 'mlflow' / 'mlflow.db'}")
    parent = client.get_run(first.mlflow_run_id)
    assert parent.info.run_name == first.run_name
    assert parent.data.tags["zenml.run_id"] == first.run_id
    assert parent.data.tags["best"] == (first.best and first.best.rows[0].combination.label)
    assert parent.info.artifact_uri.startswith((bench.folder / "state").as_uri())
    children = client.search_runs(
        [parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{first.mlflow_run_id}'"
    )
    assert len(children) == len(ROWS)
    runs = {run.info.run_name: run.data for run in children}
    for number, row in enumerate(first.comparison.rows, start=1):
        data = runs[f"row-{number:03d}"]
        assert data.params["criterion"] == row.combination.criterion.label
        assert data.params["compensation"] == row.combination.compensation.label
        if row.measured:
            assert data.metrics["perplexity.one"] == row.measured.perplexity["one"].value
        else:
            assert data.tags["refusal"] == row.refusal


def test_the_report_is_an_artifact_of_the_run(first: SweepSummary, bench: Bench) -> None:
    assert first.report.startswith(str(bench.folder / "state"))
    assert Path(first.report).read_text().startswith("<!DOCTYPE html>")
    with inside(bench.folder) as client:
        [report] = client.get_pipeline_run(first.run_id).steps["collect"].outputs["report"]
        assert report.load().location == str(Path(first.report).parent)


def test_second_run_computes_nothing(first: SweepSummary, sweep: Sweep) -> None:
    second = sweep()
    assert ran(second) == NEVER_CACHED
    assert second.comparison == first.comparison
    assert second.report == first.report


def test_a_new_ratio_runs_its_rows_alone(first: SweepSummary, sweep: Sweep) -> None:
    """Statistics are known, and so are rows whatever their number is now."""
    grid = {**GRID, "criteria": ("wanda-sp",), "ratios": (0.4, 0.3), "methods": ()}
    changed = sweep(grid=grid)
    assert ran(changed) == NEVER_CACHED | {"row_001", "row_002", "collect"}
    assert changed.comparison.rows[2] == first.comparison.rows[0]


def test_another_selection_runs_nothing(first: SweepSummary, sweep: Sweep) -> None:
    other = sweep(select={"minimise": "parameters", "at_most": {"perplexity_increase.one": -0.99}})
    assert ran(other) == NEVER_CACHED
    assert other.best is None


def test_rows_with_tasks_are_those_of_compare_and_decide(
    sweep: Sweep, bench: Bench, capfd: pytest.CaptureFixture[str]
) -> None:
    swept = sweep(
        tasks={"cloze": str(bench.task_data / "cloze.jsonl")},
        grid={"criteria": ("wanda-sp", "magnitude"), "ratios": (0.3,)},
        evaluate={"texts": ("one", "two"), "tasks": ("cloze",), "protocol": {"seqlen": 16}},
        select={"maximise": "acc.cloze", "at_least": {"acc_change.cloze": -1.0}},
    )
    arguments = bench.arguments("with-tasks", samples=16, tasks="cloze", task_data=bench.task_data)
    assert command(capfd, *arguments).code == 0
    compared = json.loads((bench.folder / "with-tasks" / "comparison.json").read_text())
    rows = figures(swept.comparison)
    for ours, theirs in zip(rows, figures(compared), strict=True):
        assert {**ours, "sums_from": None} == {**theirs, "sums_from": None}
    shares = [row["measured"]["tasks"]["cloze"]["acc"] for row in rows]
    assert swept.best and swept.best.value == max(shares)
    assert swept.best.maximised == "acc.cloze" and swept.best.minimised is None


def test_nothing_qualified_is_a_refusal(
    first: SweepSummary, bench: Bench, capfd: pytest.CaptureFixture[str]
) -> None:
    config = configuration(bench).model_dump(mode="json")
    config["select"]["at_most"] = {"parameters_ratio": 0.01}
    path = bench.folder / "sweep.yaml"
    path.write_text(json.dumps(config))  # JSON is YAML
    told = bench.folder / "told.json"
    outcome = command(capfd, "sweep", path, "--json", told)
    outcome.assert_one_line(1, "no combination meets the limits")
    assert "best" in outcome.output and "nothing was selected" in outcome.output
    value = json.loads(told.read_text())
    assert value["schema_version"] == 2 and value["best"] is None
    config["select"]["at_most"] = {}
    path.write_text(json.dumps(config))
    outcome = command(capfd, "sweep", path)
    assert outcome.code == 0, outcome
    assert "ratio 0.3: perplexity, one" in outcome.output and "cached" in outcome.output


def test_error_of_a_step_reaches_the_caller(first: SweepSummary, sweep: Sweep) -> None:
    with pytest.raises(InvalidInput, match="shorter than one window"):
        sweep(evaluate={"texts": ("one",), "protocol": {"seqlen": 9999}})
