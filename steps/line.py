"""The stages as ZenML steps, in the order of the path: what passes, typed, and one call each.

ZenML takes several outputs apart only where the ``return`` itself names them.
"""

from __future__ import annotations

import os
from typing import Annotated, Any

from zenml import ArtifactConfig, get_step_context, log_metadata, step
from zenml.enums import ArtifactType

from bipline.base.progress import heading
from bipline.delivery.registries.mlflow_run import Tracking
from bipline.delivery.signer import signer_of
from bipline.settings.compress import (
    CompressSettings,
    ExportSettings,
    PromoteSettings,
    RecoverSettings,
)
from bipline.settings.gate import GateSettings
from bipline.settings.line import (
    AllocateSettings,
    CalibrateSettings,
    CompensateSettings,
    ComputeSettings,
    PruneSettings,
    ScoreSettings,
)
from bipline.settings.protocol import Protocol
from bipline.settings.signing import SignSettings
from bipline.stages import formats, line
from bipline.stages import speed as timing
from bipline.stages.export import Account, records_of
from bipline.storage.store import Handle, default_downloads
from bipline.values.plan import PruningPlan
from bipline.values.record import EvaluationRecord
from bipline.values.recovery import RecoveryRecord
from bipline.values.resolution import Resolution
from bipline.values.speed import Speeds
from bipline.values.summary import Registration
from steps.notices import tell_registered
from steps.stage import (
    Parameter,
    cached_by,
    context,
    evaluated_at,
    run_lineage,
    settled_context,
    stage_summary,
    step_runs,
    tracking_uri,
)

# By these names ZenML finds what its cache must follow.
calibrate_fingerprint = line.calibrate.STAGE.fingerprint
score_fingerprint = line.score.STAGE.fingerprint
allocate_fingerprint = line.allocate.STAGE.fingerprint
compensate_fingerprint = line.compensate.STAGE.fingerprint
prune_fingerprint = line.prune.STAGE.fingerprint
recover_fingerprint = line.recover.STAGE.fingerprint
evaluate_fingerprint = line.evaluate.STAGE.fingerprint
speed_fingerprint = timing.STAGE.fingerprint
export_fingerprint = line.export.STAGE.fingerprint


@step(enable_cache=False)
def resolve(
    settings: Parameter[CompressSettings],
) -> tuple[
    Annotated[Resolution, "model"],
    Annotated[Resolution, "calibration_inputs"],
    Annotated[Resolution, "recovery_inputs"],
    Annotated[Resolution, "evaluation_inputs"],
]:
    """Resolve everything, and hand each stage only what it reads."""
    heading("resolve")
    address = tracking_uri()
    registry = settings.promote.registry_uri or os.environ.get("MLFLOW_REGISTRY_URI") or address
    whole = line.resolve.resolve(settings, default_downloads(), registry)
    log_metadata({"output_digest": whole.digest})
    if address:
        run = get_step_context()
        tracking = Tracking(address, run.pipeline.name, run.pipeline_run.name)
        line.promote.track_inputs(tracking, settings, whole)
    recover, evaluate = settings.recover, settings.evaluate
    return (
        whole.subset(),
        whole.subset(settings.calibrate.texts),
        whole.subset([recover.text, recover.held_out] if recover.enabled else []),
        whole.subset(evaluate.texts, evaluate.tasks),
    )


@cached_by(f"{__name__}.calibrate_fingerprint")
def calibrate(
    calibration_inputs: Resolution,
    evaluation_inputs: Resolution,
    settings: Parameter[CalibrateSettings],
    compensations: Parameter[tuple[CompensateSettings, ...]],
    seed: int,
) -> Annotated[Handle, "calibration"]:
    """Draw the calibration windows; the evaluation texts are read to refuse overlap."""
    model, texts = calibration_inputs.model, calibration_inputs.texts
    evaluation = evaluation_inputs.texts.values()
    return line.calibrate.calibrate(
        context(seed=seed), model, texts, settings, compensations, evaluation
    )


@cached_by(f"{__name__}.score_fingerprint")
def score(
    model: Resolution,
    settings: Parameter[ScoreSettings],
    compute: Parameter[ComputeSettings],
    seed: int,
    calibration: Handle | None = None,
) -> Annotated[Handle, "statistics"]:
    """Score every attention group and FFN channel."""
    here = settled_context(compute, seed, model, calibration)
    return line.score.score(here, model.model, calibration, settings)


@cached_by(f"{__name__}.allocate_fingerprint")
def allocate(
    model: Resolution,
    statistics: Handle,
    settings: Parameter[AllocateSettings],
    compute: Parameter[ComputeSettings],
    seed: int,
    calibration: Handle | None = None,
) -> Annotated[PruningPlan, "plan"]:
    """Choose what every block keeps; allocations that measure run the calibration windows."""
    here = settled_context(compute, seed, model, calibration)
    return line.allocate.allocate(here, model.model, calibration, statistics, settings)


@step(enable_cache=False)
def given_plan(
    model: Resolution, settings: Parameter[AllocateSettings]
) -> Annotated[PruningPlan, "plan"]:
    """The plan in a file."""
    return line.allocate.given_plan(context(), model.model, settings)


@step(enable_cache=False)
def given_corrections(
    model: Resolution,
    allocate: Parameter[AllocateSettings],
    settings: Parameter[CompensateSettings],
) -> tuple[Annotated[PruningPlan, "plan"], Annotated[Handle, "corrections"]]:
    """Corrections in a directory, and the plan they belong to."""
    plan, corrections = line.planned(context(), model.model, allocate, settings)
    return plan, _needed(corrections)


@step(enable_cache=False)
def check_formats(
    model: Resolution,
    plan: PruningPlan,
    settings: Parameter[ExportSettings],
    compensate: Parameter[CompensateSettings],
    corrections: Handle | None = None,
) -> Annotated[dict[str, str], "architectures"]:
    """What each format will call the model a plan makes; refused where one cannot hold it."""
    return formats.check_plan(context(), model.model, plan, settings, compensate, corrections)


@cached_by(f"{__name__}.compensate_fingerprint")
def compensate(
    model: Resolution,
    calibration: Handle,
    plan: PruningPlan,
    settings: Parameter[CompensateSettings],
    compute: Parameter[ComputeSettings],
    seed: int,
) -> tuple[Annotated[PruningPlan, "realised_plan"], Annotated[Handle, "corrections"]]:
    """Correct the weights that stay, block by block; killed, it goes on after the last block."""
    here = settled_context(compute, seed, model, calibration)
    plan, corrections = line.compensate.compensate(here, model.model, calibration, plan, settings)
    return plan, _needed(corrections)


def _needed(corrections: Handle | None) -> Handle:
    if corrections is None:
        raise RuntimeError("this step is for plans with corrections")
    return corrections


@cached_by(f"{__name__}.prune_fingerprint")
def prune(
    model: Resolution,
    plan: PruningPlan,
    settings: Parameter[PruneSettings],
    corrections: Handle | None = None,
    calibration: Handle | None = None,
) -> Annotated[Handle, ArtifactConfig(name="pruned_model", artifact_type=ArtifactType.MODEL)]:
    """Write the smaller model, with corrections where the plan was compensated."""
    shared = context()
    fitted = [shared.store.open(calibration)] if calibration else []
    return line.prune.prune(shared, model.model, plan, corrections, settings, fitted)


@cached_by(f"{__name__}.recover_fingerprint")
def recover(
    pruned: Handle,
    recovery_inputs: Resolution,
    evaluation_inputs: Resolution,
    settings: Parameter[RecoverSettings],
    compute: Parameter[ComputeSettings],
) -> tuple[
    Annotated[Handle, ArtifactConfig(name="recovered_model", artifact_type=ArtifactType.MODEL)],
    Annotated[RecoveryRecord, "recovery_record"],
]:
    """The recovered model, or the pruned one where the training did not help."""
    subject, record = line.recover.recover(
        context(compute), pruned, recovery_inputs.texts, settings,
        evaluation_inputs.texts.values(), recovery_inputs.model,
    )  # fmt: skip
    return subject, record


@cached_by(f"{__name__}.evaluate_fingerprint")
def evaluate_dense(
    evaluation_inputs: Resolution,
    protocol: Parameter[Protocol],
    compute: Parameter[ComputeSettings],
) -> Annotated[EvaluationRecord, "dense_record"]:
    """Measure the model that everything is compared with."""
    return line.evaluate.evaluate_dense(context(compute), evaluation_inputs, protocol)


@cached_by(f"{__name__}.evaluate_fingerprint")
def evaluate(
    subject: Handle,
    evaluation_inputs: Resolution,
    protocol: Parameter[Protocol],
    compute: Parameter[ComputeSettings],
    name: str,
) -> Annotated[EvaluationRecord, "{model}_record"]:
    """Measure a pruned or recovered model."""
    return line.evaluate.evaluate(context(compute), subject, evaluation_inputs, protocol, name)


@cached_by(f"{__name__}.speed_fingerprint")
def speed(
    evaluation_inputs: Resolution,
    pruned: Handle,
    subject: Handle,
    protocol: Parameter[Protocol],
    compute: Parameter[ComputeSettings],
) -> Annotated[Speeds, "speeds"]:
    """Time the dense model and what became of it, taking turns."""
    made = {"pruned": pruned, "recovered": subject}
    return timing.speed(context(compute), evaluation_inputs.model, made, protocol)


@cached_by(f"{__name__}.export_fingerprint")
def export(
    subject: Handle,
    calibration_inputs: Resolution,
    evaluation_inputs: Resolution,
    recovery_inputs: Resolution,
    settings: Parameter[ExportSettings],
    plan: PruningPlan,
    config: dict[str, Any],
    dense_record: EvaluationRecord,
    pruned_record: EvaluationRecord,
    recovered_record: EvaluationRecord | None = None,
    recovery: RecoveryRecord | None = None,
    speeds: Speeds | None = None,
    statistics: Handle | None = None,
) -> Annotated[Handle, ArtifactConfig(name="package", artifact_type=ArtifactType.MODEL)]:
    """Write the package of the pruned model, or of the recovered one where that was accepted."""
    records = records_of(dense_record, pruned_record, recovered_record, recovery, speeds)
    account = Account(plan, records, recovery, config)
    resolution = calibration_inputs.with_files(recovery_inputs, evaluation_inputs)
    return line.export.export(context(), subject, statistics, resolution, account, settings)


@step(enable_cache=False, experiment_tracker=True)
def promote(
    package: Handle,
    settings: Parameter[PromoteSettings],
    gate: Parameter[GateSettings | None],
    sign: Parameter[SignSettings],
    provenance: dict[str, str],
    plan: PruningPlan,
    config: dict[str, Any],
    dense_record: EvaluationRecord,
    pruned_record: EvaluationRecord,
    recovered_record: EvaluationRecord | None = None,
    recovery: RecoveryRecord | None = None,
    speeds: Speeds | None = None,
) -> Annotated[Registration, "registration"]:
    """Register the package, with every number of the run, and ask the gate about its alias.

    ZenML's experiment tracker opens the MLflow run, named like the pipeline run, and writes its
    id into this step's metadata; the tags name the pipeline run. So each leads to the other.
    """
    run = get_step_context().pipeline_run
    finished = [stage_summary(step) for step in step_runs(run.id).values() if step.end_time]
    remembered = [each.name for each in finished if each.status != "completed"]
    tags = {
        **provenance,
        "zenml.run_id": str(run.id),
        "zenml.run_name": run.name,
        "stages.not_run_again": ", ".join(remembered) or "none",
    }
    seconds = {each.name: each.seconds for each in finished if each.status == "completed"}
    records = records_of(dense_record, pruned_record, recovered_record, recovery, speeds)
    account = Account(plan, records, recovery, config)
    registered = line.promote.promote(
        context(), package, account, settings, gate, tags, seconds, evaluated_at(run.id),
        run_lineage(run, provenance), signer_of(sign),
    )  # fmt: skip
    told = registered.model_dump(mode="json", exclude={"verdict"})
    log_metadata({"output_digest": package.digest, "registration": told})
    tell_registered(registered, settings.alias)
    return registered
