"""Prune: a model and a plan, perhaps with corrections, become a smaller model."""

from __future__ import annotations

from typing import Annotated

from zenml import ArtifactConfig, step
from zenml.enums import ArtifactType

from bipline.settings.line import PruneSettings
from bipline.stages import prune as stage
from bipline.storage.store import Handle
from bipline.values.plan import PruningPlan
from bipline.values.resolution import Resolution
from steps.stage import FROM_JSON, cached_by, context

fingerprint = stage.STAGE.fingerprint


@step(cache_policy=cached_by(f"{__name__}.fingerprint"))
def prune(
    model: Resolution,
    plan: PruningPlan,
    settings: Annotated[PruneSettings, FROM_JSON],
    corrections: Handle | None = None,
    calibration: Handle | None = None,
) -> Annotated[Handle, ArtifactConfig(name="pruned_model", artifact_type=ArtifactType.MODEL)]:
    """Write the smaller model, with corrections where the plan was compensated."""
    shared = context()
    fitted = [shared.store.open(calibration)] if calibration else []
    return stage.prune(shared, model.model, plan, corrections, settings, fitted)
