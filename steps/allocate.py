"""Allocate: scores and a budget become a plan; or a plan that was given is taken as it is."""

from __future__ import annotations

from typing import Annotated

from zenml import step

from bipline.settings.line import AllocateSettings, ComputeSettings
from bipline.stages import allocate as stage
from bipline.storage.store import Handle
from bipline.values.plan import PruningPlan
from bipline.values.resolution import Resolution
from steps.stage import FROM_JSON, cached_by, context

fingerprint = stage.STAGE.fingerprint


@step(cache_policy=cached_by(f"{__name__}.fingerprint"))
def allocate(
    model: Resolution,
    statistics: Handle,
    settings: Annotated[AllocateSettings, FROM_JSON],
    compute: Annotated[ComputeSettings, FROM_JSON],
    seed: int,
    calibration: Handle | None = None,
) -> Annotated[PruningPlan, "plan"]:
    """Choose what every block keeps; allocations that measure run the calibration windows."""
    return stage.allocate(context(compute, seed), model.model, calibration, statistics, settings)


@step(enable_cache=False)
def given_plan(
    model: Resolution, settings: Annotated[AllocateSettings, FROM_JSON]
) -> Annotated[PruningPlan, "plan"]:
    """The plan in a file."""
    return stage.given_plan(context(), model.model, settings)
