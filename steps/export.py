"""Export and promote: model, card, report and records become a package, and that a version.

ZenML's experiment tracker opens the MLflow run, named like the pipeline run, and writes its id
into the promoting step's metadata; the tags name the pipeline run. So each leads to the other.
"""

from __future__ import annotations

from typing import Annotated, Any

from zenml import ArtifactConfig, get_step_context, log_metadata, step
from zenml.enums import ArtifactType

from bipline.settings.compress import ExportSettings, PromoteSettings
from bipline.stages import export as export_stage
from bipline.stages import promote as promote_stage
from bipline.stages.export import Account, Product
from bipline.storage.store import Handle
from bipline.values.plan import PruningPlan
from bipline.values.record import EvaluationRecord, RecoveryRecord
from bipline.values.resolution import Resolution
from bipline.values.summary import Registration
from steps.stage import FROM_JSON, cached_by, context
from steps.tracked import stage_seconds

fingerprint = export_stage.STAGE.fingerprint


@step(cache_policy=cached_by(f"{__name__}.fingerprint"))
def export(
    subject: Handle,
    plan: PruningPlan,
    dense_record: EvaluationRecord,
    pruned_record: EvaluationRecord,
    calibration_inputs: Resolution,
    evaluation_inputs: Resolution,
    recovery_inputs: Resolution,
    settings: Annotated[ExportSettings, FROM_JSON],
    config: dict[str, Any],
    statistics: Handle | None = None,
    recovered_record: EvaluationRecord | None = None,
    recovery: RecoveryRecord | None = None,
) -> Annotated[Handle, ArtifactConfig(name="package", artifact_type=ArtifactType.MODEL)]:
    """Write the package of the pruned model, or of the recovered one where that was accepted."""
    records = _records(dense_record, pruned_record, recovered_record, recovery)
    product = Product(
        model=subject,
        statistics=statistics,
        resolution=calibration_inputs.with_files(recovery_inputs, evaluation_inputs),
        account=Account(plan, records, recovery, config),
    )
    return export_stage.export(context(), product, settings)


@step(enable_cache=False, experiment_tracker=True)
def promote(
    package: Handle,
    plan: PruningPlan,
    dense_record: EvaluationRecord,
    pruned_record: EvaluationRecord,
    settings: Annotated[PromoteSettings, FROM_JSON],
    config: dict[str, Any],
    provenance: dict[str, str],
    recovered_record: EvaluationRecord | None = None,
    recovery: RecoveryRecord | None = None,
) -> Annotated[Registration, "registration"]:
    """Register the package under its name and alias, with every number of the run."""
    run = get_step_context().pipeline_run
    seconds, remembered = stage_seconds(run.id)
    records = _records(dense_record, pruned_record, recovered_record, recovery)
    registered = promote_stage.promote(
        context(),
        package,
        Account(plan, records, recovery, config),
        settings,
        tags={
            **provenance,
            "zenml.run_id": str(run.id),
            "zenml.run_name": run.name,
            "stages.not_run_again": ", ".join(remembered) or "none",
        },
        seconds=seconds,
    )
    told = {"output_digest": package.digest, "registration": registered.model_dump()}
    log_metadata(told)
    return registered


def _records(
    dense: EvaluationRecord,
    pruned: EvaluationRecord,
    recovered: EvaluationRecord | None,
    recovery: RecoveryRecord | None,
) -> dict[str, EvaluationRecord]:
    """Records by model; that of a recovered one counts where the recovery was accepted."""
    records = {"dense": dense, "pruned": pruned}
    if recovered and recovery and recovery.accepted:
        records["recovered"] = recovered
    return records
