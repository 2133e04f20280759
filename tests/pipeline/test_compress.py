"""The compress pipeline end to end: what runs, what is skipped, what stops it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bipline.base.errors import InvalidInput, Refused
from bipline.compression.auto import CHOSEN
from bipline.delivery.registries.mlflow_service import tracking_uri
from bipline.delivery.vouching import verify
from bipline.recovery import training
from bipline.stages.storing import prune_stored
from bipline.storage.manifest import LINEAGE, MANIFEST_NAME, verify_directory
from bipline.storage.sharing import cloned
from bipline.storage.stage_key import PROJECT_ROOT
from bipline.values.plan import read_plan
from bipline.values.summary import RunSummary
from tests.pipeline.conftest import Run, client_of, configuration, inside, named

STEPS = [
    "resolve", "calibrate", "score", "allocate", "compensate", "prune", "recover",
    "evaluate_dense", "evaluate_pruned", "evaluate_recovered", "export", "promote",
]  # fmt: skip
NEVER_CACHED = {"resolve", "promote"}
EVALUATIONS = {"evaluate_dense", "evaluate_pruned", "evaluate_recovered"}


def ran(summary: RunSummary) -> set[str]:
    """The steps that were not answered from a cache."""
    return {stage.name for stage in summary.stages if stage.status == "completed"}


def test_first_run_goes_through_every_stage_in_order(first: RunSummary) -> None:
    assert [stage.name for stage in first.stages] == STEPS
    # A refused recovery would be measured as the pruned model, and that is known by then.
    assert ran(first) == set(STEPS)
    assert first.status == "completed"
    assert first.recovery is not None and first.recovery.accepted
    assert set(first.records) == {"dense", "pruned", "recovered"}
    assert first.records["pruned"].parameters < first.records["dense"].parameters
    package = Path(first.package.location)
    assert verify_directory(package).digest == first.package.digest
    assert Path(first.report).is_file()
    assert not first.registration.reused


def test_the_package_tells_what_compensation_did(first: RunSummary) -> None:
    package = Path(first.package.location)
    plan = read_plan(package / "pruning_plan.json")
    assert (plan.criterion, plan.allocation, plan.compensation) == (
        CHOSEN.criterion.name, CHOSEN.allocation.name, CHOSEN.compensation.name,
    )  # fmt: skip
    assert plan.compensated is not None
    for block in plan.compensated.blocks:
        assert block.error <= block.error_without
    for page in ("README.md", "report.html"):
        text = (package / page).read_text(encoding="utf-8")
        assert "error of all blocks on held-out calibration windows" in text, page


def test_zenml_and_mlflow_name_each_other(first: RunSummary, folder: Path) -> None:
    import mlflow

    uri = f"sqlite:///{folder / 'state' / 'mlflow' / 'mlflow.db'}"
    tracked = mlflow.MlflowClient(uri).get_run(first.registration.mlflow_run_id)
    assert tracked.info.run_name == first.run_name
    assert tracked.data.tags["zenml.run_id"] == first.run_id
    assert tracked.data.params["allocate.ratio"] == "0.3"
    assert tracked.data.tags["git.commit"]
    assert tracked.info.artifact_uri.startswith((folder / "state").as_uri())
    page = Path(tracked.info.artifact_uri.removeprefix("file://"), "report.html").read_text("utf-8")
    told = [first.run_name, first.registration.mlflow_run_id, "<b>Verdict</b>", "<b>Measured</b>"]
    assert all(each in page for each in told), (
        "the run's copy of the report says what no package does"
    )
    assert not any(each in Path(first.report).read_text("utf-8") for each in told)
    with inside(folder) as client:
        run = client.get_pipeline_run(first.run_id)
        metadata = run.steps["promote"].run_metadata
        assert metadata["registration"]["mlflow_run_id"] == first.registration.mlflow_run_id
        assert run.run_metadata["git.commit"] == tracked.data.tags["git.commit"]


def test_the_lineage_names_run_and_keys_here_and_in_the_registry(
    first: RunSummary, folder: Path
) -> None:
    """The registered copy was made in this run, so it has this run's lineage."""
    package = Path(first.package.location)
    name = f"runs/{first.run_id}.json"
    told = json.loads((package / LINEAGE / name).read_bytes())
    assert told["run_name"] == first.run_name and told["host"]
    # The step that writes it has not ended yet.
    assert set(told["stages"]) == set(STEPS) - {"promote"}
    assert told["stages"]["export"]["digest"] == first.package.digest
    assert told["stages"]["export"]["key"].startswith(package.name)
    found = [each.parent for each in (folder / "state").rglob(f"{LINEAGE}/provenance.json")]
    assert len(found) > 1
    for each in found:
        assert (each / name).is_file()
        lines = " ".join(verify(each.parent).told)
        assert "SLSA provenance v1, valid" in lines and "CycloneDX 1.6, valid" in lines
    statement = json.loads((package / LINEAGE / "provenance.json").read_bytes())
    definition = statement["predicate"]["buildDefinition"]
    assert definition["externalParameters"]["configuration"]["allocate"]["ratio"] == 0.3
    assert definition["internalParameters"]["stages"]["prune"]


def test_everything_lies_below_the_state_folder(first: RunSummary, folder: Path) -> None:
    assert not list((folder / "elsewhere").iterdir())
    assert not (folder / "foreign").exists()
    assert first.package.location.startswith(str(folder / "state"))


def test_second_run_skips_all_that_is_known(first: RunSummary, run: Run, folder: Path) -> None:
    second = run()
    assert ran(second) == NEVER_CACHED
    assert second.package.digest == first.package.digest
    assert second.registration.version == first.registration.version
    assert second.registration.reused and second.unchanged and not first.unchanged
    [tracked] = named(folder, second.run_name)
    timed = {name for name in tracked.data.metrics if name.startswith("seconds/")}
    assert timed == {"seconds/resolve"}, "a stage that was not run took no time to tell of"
    version = client_of(folder).get_model_version("tiny", second.registration.version)
    # What the version said first stands, though another run came to it.
    assert second.registration.mlflow_run_id not in version.description


def test_changed_section_runs_its_stage_and_what_follows(first: RunSummary, run: Run) -> None:
    changed = run(evaluate={"protocol": {"seqlen": 24}})
    assert ran(changed) == EVALUATIONS | {"export"} | NEVER_CACHED
    assert changed.registration.version != first.registration.version


@pytest.mark.slow
@pytest.mark.parametrize(
    ("section", "changed", "follow"),
    [
        ("calibrate", {"samples": 9, "seqlen": 16}, {"calibrate", "score", "allocate"}),
        ("allocate", {"ratio": 0.31}, {"allocate", "compensate", "prune", "recover"}),
        ("compensate", {"compensation": "bias"}, {"compensate", "prune", "recover"}),
        ("prune", {"shard_size": 20000}, {"prune", "recover"}),
        ("promote", {"name": "another"}, set()),
    ],
)
def test_an_edit_runs_nothing_before_its_stage(
    first: RunSummary, run: Run, section: str, changed: dict[str, Any], follow: set[str]
) -> None:
    summary = run(**{section: changed})
    assert follow <= ran(summary)
    before = STEPS[: STEPS.index(section)]
    assert not (ran(summary) - NEVER_CACHED) & {*before, "evaluate_dense"}
    if section == "promote":
        assert ran(summary) == NEVER_CACHED


@pytest.mark.slow
def test_model_package_and_version_are_one_copy(first: RunSummary, folder: Path) -> None:
    package = Path(first.package.location)
    if cloned(package / "README.md", folder / "probe"):
        pytest.skip("this file system shares blocks, which no inode tells")
    weights = (package / "hf" / "model.safetensors").stat()
    # Other tests store and register more from the same state.
    manifest = (package / MANIFEST_NAME).read_bytes()
    versions = [
        place.parent
        for place in (folder / "state" / "mlflow").rglob(f"package/{MANIFEST_NAME}")
        if place.read_bytes() == manifest
    ]
    models = [place / "model.safetensors" for place in _stored(first, "recover")]
    assert versions and any(os.path.samestat(weights, each.stat()) for each in models)
    for version in versions:
        assert os.path.samestat(weights, (version / "hf" / "model.safetensors").stat())
    assert weights.st_nlink >= 2 + len(versions)
    assert weights.st_mode & 0o777 == 0o444


def test_a_store_knows_the_run_and_the_version_that_point_at_each_entry(
    first: RunSummary, folder: Path
) -> None:
    state = folder / "state"
    found = prune_stored(state, tracking_uri(state), keep_registered=True, dry_run=True)
    assert found.removed == ()
    own = [entry for entry in found.entries if first.run_name in entry.runs]
    stages = {entry.stage for entry in own}
    assert {"score", "prune", "recover", "evaluate", "export"} <= stages
    # Other tests registered more from the same state; the alias is the last one's.
    version = f"{first.registration.model_name} {first.registration.version}"
    for entry in own:
        assert version in {label.partition(" @")[0] for label in entry.versions}, entry.name


@pytest.mark.slow
def test_deleted_package_is_made_again_from_the_store(first: RunSummary, run: Run) -> None:
    shutil.rmtree(first.package.location)
    again = run()
    assert ran(again) == {"export"} | NEVER_CACHED
    assert again.stage("score").status == "reused"
    assert again.package.digest == first.package.digest


@pytest.mark.slow
def test_refused_recovery_leaves_its_record_alone(first: RunSummary, run: Run) -> None:
    recipe = {"steps": 1, "batch_size": 2, "seqlen": 16, "learning_rate": 1e-30}
    section = {"enabled": True, "text": "calibration", "held_out": "judge", "recipe": recipe}
    refused = run(recover=section)
    assert refused.recovery is not None and not refused.recovery.accepted
    assert set(refused.records) == {"dense", "pruned"}
    assert refused.package.info["packaged"] == "pruned"
    # The pruned model was handed on, so what was known of it is known of the answer.
    assert ran(refused) == {"recover", "export"} | NEVER_CACHED
    stored = [sorted(path.name for path in place.iterdir()) for place in _stored(first, "recover")]
    assert [MANIFEST_NAME] in stored


@pytest.mark.slow
def test_a_recovery_that_became_nan_hands_on_the_pruned_model(
    first: RunSummary, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective, seen = training.objective, []

    def poisoned(*given: Any) -> Any:
        seen.append(1)
        return objective(*given) * (float("nan") if len(seen) == 3 else 1.0)

    monkeypatch.setattr(training, "objective", poisoned)
    recipe = {"rank": 2, "steps": 4, "batch_size": 4, "seqlen": 16, "learning_rate": 0.019}
    section = {"enabled": True, "text": "calibration", "held_out": "judge", "recipe": recipe}
    summary = run(recover=section)
    assert len(seen) == 3
    assert summary.recovery is not None and not summary.recovery.accepted
    assert summary.recovery.last_good_step == 1
    assert set(summary.records) == {"dense", "pruned"}
    assert summary.records["pruned"].perplexity == first.records["pruned"].perplexity
    assert summary.package.info["packaged"] == "pruned"
    reason = "the loss became NaN or infinite at step 3; the last good state is that of step 1"
    assert summary.recovery.reason == reason
    assert reason in Path(summary.report).read_text(encoding="utf-8")
    kept = [place for place in _stored(first, "recover") if (place / "last-good").is_dir()]
    assert len(kept) == 1


def test_flipped_byte_stops_the_next_stage(first: RunSummary, run: Run) -> None:
    pruned = min(_stored(first, "prune"), key=lambda place: place.stat().st_mtime)
    weights = pruned / "model.safetensors"
    whole = weights.read_bytes()
    weights.chmod(0o644)
    try:
        weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(Refused, match=r"model\.safetensors does not match its sha256"):
            run(evaluate={"protocol": {"seqlen": 20}})
    finally:
        weights.write_bytes(whole)


def test_more_parts_than_chunks_are_refused(first: RunSummary, run: Run) -> None:
    with pytest.raises(InvalidInput, match="too few for 2 workers"):
        run(score={"parts": 2})


def test_error_of_a_step_reaches_the_caller_and_mlflow(
    first: RunSummary, run: Run, folder: Path
) -> None:
    with pytest.raises(InvalidInput, match="ratio 7"):
        run(allocate={"ratio": 7.0})
    experiment = named(folder, first.run_name)[0].info.experiment_id
    [failed] = client_of(folder).search_runs([experiment], "params.`allocate.ratio` = '7.0'")
    assert failed.info.status == "FAILED"
    assert failed.data.tags["failure"].startswith("ratio 7.0: must lie between")
    assert len(failed.inputs.dataset_inputs) == 3


@pytest.mark.slow
def test_edit_of_core_code_runs_exactly_its_stages(
    first: RunSummary, run: Run, llama: Path, folder: Path, tmp_path: Path
) -> None:
    run()
    for room in ("bipline", "steps", "pipelines", "materializers"):
        shutil.copytree(PROJECT_ROOT / room, tmp_path / room)
    edited = tmp_path / "bipline" / "compression" / "allocation" / "uniform.py"
    (tmp_path / "config.json").write_text(configuration(llama, folder).model_dump_json())
    script = (
        "from pathlib import Path; from bipline.settings.compress import CompressSettings\n"
        "from pipelines.run import run_compress\n"
        "config = CompressSettings.model_validate_json(Path('config.json').read_text())\n"
        "Path('summary.json').write_text(run_compress(config).model_dump_json())\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    for edit, stages in (
        ("# a comment that means nothing\n", set()),
        ("MEANS_NOTHING_EITHER = 1\n", {"allocate"}),
    ):
        with edited.open("a", encoding="utf-8") as file:
            file.write(edit)
        subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, check=True)
        summary = RunSummary.model_validate(json.loads((tmp_path / "summary.json").read_text()))
        # The plan came out equal, so nothing after it had to run.
        assert ran(summary) == stages | NEVER_CACHED
        assert summary.package.digest == first.package.digest


@pytest.mark.slow
def test_parallel_steps_give_the_statistics_of_one(first: RunSummary, run: Run) -> None:
    windows = {"samples": 40, "seqlen": 16}
    alone = run(calibrate=windows)
    parted = run(calibrate=windows, score={"parts": 3})
    assert {"score_part_1", "score_part_2", "score_part_3"} <= ran(parted)
    # What they come to has the key of a single pass, and lies there already.
    assert parted.stage("score").status == "reused"
    assert parted.plan == alone.plan
    # The same statistics, so nothing after them had to run but what shows the configuration.
    assert not ran(parted) & {"allocate", "prune", "recover"}
    assert parted.records == alone.records


def _stored(summary: RunSummary, stage: str) -> list[Path]:
    """What the Store keeps of a stage."""
    place = Path(summary.package.location).parents[1] / stage
    return [path for path in place.iterdir() if path.is_dir()]
