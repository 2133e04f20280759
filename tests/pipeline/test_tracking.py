"""What MLflow and ZenML know of a run: one MLflow run from its first stage on, and its version."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bipline.delivery.registries.mlflow_run import Tracking
from bipline.delivery.registries.mlflow_service import tracking_uri
from bipline.storage.digests import digest_file
from bipline.values.plan import read_plan
from bipline.values.record import EvaluationRecord
from bipline.values.summary import RunSummary
from pipelines.run import _tell_failure
from tests.pipeline.conftest import client_of, inside, named


def test_a_run_is_one_run_with_what_went_in_and_what_came_out(
    first: RunSummary, folder: Path
) -> None:
    [run] = named(folder, first.run_name)
    assert run.info.status == "FINISHED"
    assert run.data.params["promote.name"] == "tiny"
    told = {each.dataset.name: each for each in run.inputs.dataset_inputs}
    tags = {name: {tag.key: tag.value for tag in each.tags} for name, each in told.items()}
    assert {name: each["mlflow.data.context"] for name, each in tags.items()} == {
        "calibration": "calibration, training", "held-out": "evaluation", "judge": "validation",
    }  # fmt: skip
    digest = digest_file(folder / "held-out.txt")
    assert tags["held-out"]["sha256"] == digest and told["held-out"].dataset.digest == digest[:36]
    client = client_of(folder)
    [went_in], [came_out] = run.inputs.model_inputs, run.outputs.model_outputs
    dense, package = (client.get_logged_model(each.model_id) for each in (went_in, came_out))
    assert dense.tags["tensor_digest"] == first.records["dense"].tensor_digest
    assert package.tags["package_digest"] == first.package.digest


def test_metrics_are_groups_curves_and_plain_final_figures(first: RunSummary, folder: Path) -> None:
    [run] = named(folder, first.run_name)
    told, final = run.data.metrics, first.records["recovered"].perplexity["held-out"]
    assert told["perplexity.held-out"] == told["recovered/perplexity.held-out"] == final.value
    assert told["pruned/perplexity.held-out.stderr"] == perplexity(first, "pruned").stderr
    assert told["seconds/score"] > 0
    curve = client_of(folder).get_metric_history(run.info.run_id, "blocks/error")
    realised = read_plan(Path(first.package.location) / "pruning_plan.json").compensated
    assert realised is not None
    assert [each.value for each in sorted(curve, key=lambda each: each.step)] == [
        block.error for block in realised.blocks
    ]


def perplexity(summary: RunSummary, model: str) -> Any:
    record: EvaluationRecord = summary.records[model]
    return record.perplexity["held-out"]


def test_a_version_says_what_it_is(first: RunSummary, folder: Path) -> None:
    version = client_of(folder).get_model_version("tiny", first.registration.version)
    [run] = named(folder, first.run_name)
    tags = dict(version.tags)
    assert tags.pop("evaluated_at").endswith("+00:00")
    assert tags == {
        "package_digest": first.package.digest,
        "tensor_digest": first.records["recovered"].tensor_digest,
        "base_tensor_digest": first.records["dense"].tensor_digest,
        "plan_digest": read_plan(Path(first.package.location) / "pruning_plan.json").digest,
        "base_model": "llama",
        "git_commit": run.data.tags["git.commit"],
    }
    assert "| Perplexity, held-out |" in version.description
    assert f"/runs/{run.info.run_id}/artifacts)" in version.description
    assert len(version.description) <= 5000


def test_a_run_that_was_stopped_is_killed(first: RunSummary, folder: Path) -> None:
    _tell_failure(
        Tracking(tracking_uri(folder / "state"), "compress", "stopped"), KeyboardInterrupt()
    )
    [found] = named(folder, "stopped")
    assert (found.info.status, found.data.tags["failure"]) == ("KILLED", "KeyboardInterrupt")


def test_zenml_has_versions_names_and_pictures(first: RunSummary, folder: Path) -> None:
    with inside(folder) as client:
        run = client.get_pipeline_run(first.run_id)
        assert {tag.name for tag in run.tags} >= {"ratio 0.3"}
        assert run.model_version.model.name == "tiny"
        steps = run.steps
        names = {
            each.name
            for step in steps.values()
            for outputs in step.outputs.values()
            for each in outputs
        }
        assert {"pruned_record", "recovered_record", "pruned_model", "recovered_model"} <= names
        shown = {
            name: [
                Path(each.uri).name for each in steps[step].outputs[name][0].visualizations or []
            ]
            for step, name in (("allocate", "plan"), ("export", "package"))
        }
    assert "plan.html" in shown["plan"] and "report.html" in shown["package"]
