"""Allocate: scores and a budget become a plan."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from zenml import step

from bipline.compression import allocate as core
from bipline.compression.allocation import RULES, rule_module
from bipline.compression.statistics import load_statistics
from bipline.model.devices import choose_device
from bipline.settings.compress import AllocateSection
from bipline.storage.store import Handle
from bipline.values.plan import PruningPlan
from bipline.values.resolution import Resolution
from steps.stage import FROM_JSON, Stage, cached_by, calibration_windows, dense_checkpoint

VERSION = "2"
CORE = "bipline.compression.allocate"
# ZenML's cache function cannot see the section, so it follows every rule.
STAGE = Stage("allocate", VERSION, (CORE, *(rule_module(rule) for rule in RULES)))


def fingerprint() -> str:
    """See :meth:`steps.stage.Stage.fingerprint`."""
    return STAGE.fingerprint()


@step(cache_policy=cached_by(f"{__name__}.fingerprint"))
def allocate(
    model: Resolution,
    calibration: Handle,
    statistics: Handle,
    section: Annotated[AllocateSection, FROM_JSON],
) -> Annotated[PruningPlan, "plan"]:
    """Choose what every block keeps; rules that measure run the calibration windows."""
    request = core.AllocationRequest(**section.model_dump(exclude={"dtype", "device"}))
    measures = core.needs_windows(request)
    inputs = {"model": model.digest, "statistics": statistics.digest}
    if measures:
        inputs["calibration"] = calibration.digest
        inputs["device"] = choose_device(section.device).type

    def produce() -> PruningPlan:
        checkpoint = dense_checkpoint(model)
        _, scores = load_statistics(Path(statistics.location))
        windows = None
        if measures:
            windows = calibration_windows(checkpoint, calibration, section.dtype, section.device)
        return core.allocate(checkpoint, scores, request, windows)

    return STAGE.stored_value(STAGE.key(inputs, section), "plan", PruningPlan, produce)
