"""Recover: a short training, kept only where it helps."""

from __future__ import annotations

from typing import Annotated

from zenml import ArtifactConfig, step
from zenml.enums import ArtifactType

from bipline.settings.compress import RecoverSettings
from bipline.stages import recover as stage
from bipline.storage.store import Handle
from bipline.values.record import RecoveryRecord
from bipline.values.resolution import Resolution
from steps.stage import FROM_JSON, cached_by, context

fingerprint = stage.STAGE.fingerprint


@step(cache_policy=cached_by(f"{__name__}.fingerprint"))
def recover(
    pruned: Handle,
    recovery_inputs: Resolution,
    evaluation_inputs: Resolution,
    settings: Annotated[RecoverSettings, FROM_JSON],
) -> tuple[
    Annotated[Handle, ArtifactConfig(name="recovered_model", artifact_type=ArtifactType.MODEL)],
    Annotated[RecoveryRecord, "recovery_record"],
]:
    """The recovered model, or the pruned one where the training did not help."""
    subject, record = stage.recover(
        context(), pruned, recovery_inputs.texts, settings, evaluation_inputs.texts.values()
    )
    return subject, record
