"""Score: one pass over the calibration windows becomes sums and scores."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from zenml import step

from bipline.artifacts.directory import DirectoryWriter
from bipline.artifacts.resolution import Resolution
from bipline.artifacts.store import Handle
from bipline.compression import score as core
from bipline.compression.calibrate import load_calibration
from bipline.compression.criteria import CRITERIA, module_name
from bipline.compression.criteria.interface import Options
from bipline.compression.statistics import KIND, save_statistics
from bipline.config import ScoreSection
from bipline.quality.protocols import torch_dtype
from steps.stage import FROM_JSON, Stage, cached_by, dense_checkpoint

VERSION = "1"
CORE = "bipline.compression.score"
# ZenML's cache function cannot see the section, so it follows every criterion.
STAGE = Stage("score", VERSION, (CORE, *(module_name(criterion) for criterion in CRITERIA)))


def fingerprint() -> str:
    """See :meth:`steps.stage.Stage.fingerprint`."""
    return STAGE.fingerprint()


@step(cache_policy=cached_by(f"{__name__}.fingerprint"))
def score(
    model: Resolution, calibration: Handle, section: Annotated[ScoreSection, FROM_JSON]
) -> Annotated[Handle, "statistics"]:
    """Score every attention group and FFN channel; the Store's key follows one criterion."""
    inputs = {"model": model.digest, "calibration": calibration.digest}
    key = STAGE.key(inputs, section, (CORE, module_name(section.criterion)))

    def produce(writer: DirectoryWriter) -> None:
        windows = load_calibration(Path(calibration.location))
        with STAGE.work(key) as work:
            statistics, scores = core.score_model(
                dense_checkpoint(model),
                core.Calibration(windows.token_ids, windows.digest),
                section.criterion,
                Options(seed=section.seed),
                core.Computing(torch_dtype(section.dtype)),
                work,
            )
        save_statistics(statistics, scores, writer)

    return STAGE.stored(key, KIND, produce)
