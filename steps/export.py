"""Export: model, card, report and records become one package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from zenml import ArtifactConfig, step
from zenml.enums import ArtifactType

from bipline.delivery import export as core
from bipline.settings.compress import ExportSection
from bipline.storage.digests import digest_json
from bipline.storage.store import Handle
from bipline.values.plan import PruningPlan
from bipline.values.record import EvaluationRecord, RecoveryRecord
from bipline.values.resolution import Resolution
from steps.stage import FROM_JSON, Stage, cached_by

VERSION = "1"
STAGE = Stage("export", VERSION, ("bipline.delivery.export",))


def fingerprint() -> str:
    """See :meth:`steps.stage.Stage.fingerprint`."""
    return STAGE.fingerprint()


@step(cache_policy=cached_by(f"{__name__}.fingerprint"))
def export(
    subject: Handle,
    statistics: Handle,
    plan: PruningPlan,
    dense_record: EvaluationRecord,
    pruned_record: EvaluationRecord,
    calibration_inputs: Resolution,
    evaluation_inputs: Resolution,
    recovery_inputs: Resolution,
    section: Annotated[ExportSection, FROM_JSON],
    config: dict[str, Any],
    recovered_record: EvaluationRecord | None = None,
    recovery: RecoveryRecord | None = None,
) -> Annotated[Handle, ArtifactConfig(name="package", artifact_type=ArtifactType.MODEL)]:
    """Write the package of the pruned model, or of the recovered one where that was accepted."""
    resolution = _together(calibration_inputs, recovery_inputs, evaluation_inputs)
    records = {"dense": dense_record, "pruned": pruned_record}
    if recovery and recovery.accepted and recovered_record:
        records["recovered"] = recovered_record
    contents = core.PackageContents(
        model=Path(subject.location),
        dense=Path(resolution.model.location),
        plan=plan,
        statistics=Path(statistics.location),
        records=records,
        recovery=recovery,
        resolution=resolution,
        config=config,
        formats=section.formats,
    )
    told: dict[str, Any] = {
        name: record.model_dump(mode="json") for name, record in records.items()
    }
    told["recovery"] = recovery and recovery.model_dump(mode="json")
    inputs = {
        "model": subject.digest,
        "statistics": statistics.digest,
        "plan": plan.digest,
        "records": digest_json(told),
        "resolution": digest_json(resolution.model_dump(mode="json")),
        "config": digest_json(config),
    }
    key = STAGE.key(inputs, section)
    return STAGE.stored(key, core.KIND, lambda writer: core.write_package(contents, writer))


def _together(*parts: Resolution) -> Resolution:
    """One resolution of all that the run read."""
    texts = {name: text for part in parts for name, text in part.texts.items()}
    tasks = {name: task for part in parts for name, task in part.tasks.items()}
    return Resolution(model=parts[0].model, texts=texts, tasks=tasks)
