"""Score: one pass over the calibration windows becomes sums and scores."""

from __future__ import annotations

from typing import Annotated

from zenml import step

from bipline.settings.line import ComputeSettings, ScoreSettings
from bipline.stages import score as stage
from bipline.storage.store import Handle
from bipline.values.resolution import Resolution
from steps.stage import FROM_JSON, cached_by, context

fingerprint = stage.STAGE.fingerprint


@step(cache_policy=cached_by(f"{__name__}.fingerprint"))
def score(
    model: Resolution,
    settings: Annotated[ScoreSettings, FROM_JSON],
    compute: Annotated[ComputeSettings, FROM_JSON],
    seed: int,
    calibration: Handle | None = None,
) -> Annotated[Handle, "statistics"]:
    """Score every attention group and FFN channel."""
    found = stage.score(context(compute, seed), model.model, calibration, settings)
    if found is None:
        raise RuntimeError("a step leads its processes")
    return found


@step(cache_policy=cached_by(f"{__name__}.fingerprint"))
def score_part(
    model: Resolution,
    calibration: Handle,
    settings: Annotated[ScoreSettings, FROM_JSON],
    compute: Annotated[ComputeSettings, FROM_JSON],
    seed: int,
    index: int,
) -> Annotated[Handle, "partial_statistics"]:
    """The sums of one part of the calibration windows: parts run wherever there is room."""
    return stage.score_part(context(compute, seed), model.model, calibration, settings, index)


@step(cache_policy=cached_by(f"{__name__}.fingerprint"))
def reduce_scores(
    model: Resolution,
    calibration: Handle,
    parts: list[Handle],
    settings: Annotated[ScoreSettings, FROM_JSON],
    compute: Annotated[ComputeSettings, FROM_JSON],
    seed: int,
) -> Annotated[Handle, "statistics"]:
    """Add the parts' sums in chunk order and score: the bits of a single pass."""
    return stage.reduce_scores(context(compute, seed), model.model, calibration, parts, settings)
