"""Calibrate: texts become token windows."""

from __future__ import annotations

from typing import Annotated

from zenml import step

from bipline.settings.line import CalibrateSettings, CompensateSettings
from bipline.stages import calibrate as stage
from bipline.storage.store import Handle
from bipline.values.resolution import Resolution
from steps.stage import FROM_JSON, cached_by, context

fingerprint = stage.STAGE.fingerprint


@step(cache_policy=cached_by(f"{__name__}.fingerprint"))
def calibrate(
    calibration_inputs: Resolution,
    evaluation_inputs: Resolution,
    settings: Annotated[CalibrateSettings, FROM_JSON],
    compensate: Annotated[CompensateSettings, FROM_JSON],
    seed: int,
) -> Annotated[Handle, "calibration"]:
    """Draw the calibration windows; the evaluation texts are read to refuse overlap."""
    return stage.calibrate(
        context(seed=seed), calibration_inputs.model, calibration_inputs.texts, settings,
        compensate, evaluation_inputs.texts.values(),
    )  # fmt: skip
