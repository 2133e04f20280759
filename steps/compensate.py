"""Compensate: a plan becomes the plan as it is carried out, and the corrections it needs."""

from __future__ import annotations

from typing import Annotated

from zenml import step

from bipline.settings.line import CompensateSettings, ComputeSettings, LineSettings
from bipline.stages import compensate as stage
from bipline.stages.line import planned
from bipline.storage.store import Handle
from bipline.values.plan import PruningPlan
from bipline.values.resolution import Resolution
from steps.stage import FROM_JSON, cached_by, context

fingerprint = stage.STAGE.fingerprint


@step(cache_policy=cached_by(f"{__name__}.fingerprint"))
def compensate(
    model: Resolution,
    calibration: Handle,
    plan: PruningPlan,
    settings: Annotated[CompensateSettings, FROM_JSON],
    compute: Annotated[ComputeSettings, FROM_JSON],
    seed: int,
) -> tuple[Annotated[PruningPlan, "realised_plan"], Annotated[Handle, "corrections"]]:
    """Correct the weights that stay, block by block; killed, it goes on after the last block."""
    plan, corrections = stage.compensate(
        context(compute, seed), model.model, calibration, plan, settings
    )
    return plan, _needed(corrections)


@step(enable_cache=False)
def given_corrections(
    model: Resolution, settings: Annotated[LineSettings, FROM_JSON]
) -> tuple[Annotated[PruningPlan, "realised_plan"], Annotated[Handle, "corrections"]]:
    """Corrections in a directory, and the plan they belong to."""
    plan, corrections = planned(context(), model.model, settings)
    return plan, _needed(corrections)


def _needed(corrections: Handle | None) -> Handle:
    if corrections is None:
        raise RuntimeError("this step is for plans with corrections")
    return corrections
