"""Allocate: scores and a budget become a plan."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from zenml import step

from bipline.artifacts.plan import PruningPlan
from bipline.artifacts.resolution import Resolution
from bipline.artifacts.store import Handle
from bipline.compression import allocate as core
from bipline.compression.statistics import load_statistics
from bipline.config import AllocateSection
from steps.stage import FROM_JSON, Stage, cached_by, dense_checkpoint

VERSION = "1"
STAGE = Stage("allocate", VERSION, ("bipline.compression.allocate",))


def fingerprint() -> str:
    """See :meth:`steps.stage.Stage.fingerprint`."""
    return STAGE.fingerprint()


@step(cache_policy=cached_by(f"{__name__}.fingerprint"))
def allocate(
    model: Resolution, statistics: Handle, section: Annotated[AllocateSection, FROM_JSON]
) -> Annotated[PruningPlan, "plan"]:
    """Choose what every block keeps."""
    inputs = {"model": model.digest, "statistics": statistics.digest}

    def produce() -> PruningPlan:
        checkpoint = dense_checkpoint(model)
        _, scores = load_statistics(Path(statistics.location))
        return core.allocate(
            checkpoint, scores, section.ratio, section.ratio_of, section.ffn_multiple
        )

    return STAGE.stored_value(STAGE.key(inputs, section), "plan", PruningPlan, produce)
