"""Compensate: a plan becomes the plan as it is carried out, and the corrections it needs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from zenml import step

from bipline.compression.compensation import realise as core
from bipline.compression.corrections import KIND, open_corrections
from bipline.model.devices import choose_device
from bipline.settings.compress import CompensateSection
from bipline.storage.directory import DirectoryWriter
from bipline.storage.store import Handle
from bipline.values.plan import PruningPlan
from bipline.values.resolution import Resolution
from steps.stage import FROM_JSON, Stage, cached_by, calibration_windows, dense_checkpoint

VERSION = "1"
STAGE = Stage("compensate", VERSION, ("bipline.compression.compensation.realise",))


def fingerprint() -> str:
    """See :meth:`steps.stage.Stage.fingerprint`."""
    return STAGE.fingerprint()


@step(cache_policy=cached_by(f"{__name__}.fingerprint"))
def compensate(
    model: Resolution,
    calibration: Handle,
    plan: PruningPlan,
    section: Annotated[CompensateSection, FROM_JSON],
) -> tuple[Annotated[PruningPlan, "realised_plan"], Annotated[Handle, "corrections"]]:
    """Correct the weights that stay, block by block; killed, it goes on after the last block."""
    device = choose_device(section.device).type
    inputs = {
        "model": model.digest,
        "calibration": calibration.digest,
        "plan": plan.digest,
        "device": device,
    }
    key = STAGE.key(inputs, section)
    request = core.CompensationRequest(section.form or "none", section.options)

    def produce(writer: DirectoryWriter) -> None:
        checkpoint = dense_checkpoint(model)
        windows = calibration_windows(checkpoint, calibration, section.dtype, section.device)
        with STAGE.work(key) as work:
            core.realise(checkpoint, plan, windows, request, writer, work)

    corrections = STAGE.stored(key, KIND, produce)
    return open_corrections(Path(corrections.location))[0], corrections
