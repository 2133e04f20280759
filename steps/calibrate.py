"""Calibrate: texts become token windows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from zenml import step

from bipline.compression import calibrate as core
from bipline.settings.compress import CalibrateSection
from bipline.storage.directory import DirectoryWriter
from bipline.storage.store import Handle
from bipline.values.resolution import Resolution
from steps.stage import FROM_JSON, Stage, cached_by, text_digest

VERSION = "1"
STAGE = Stage("calibrate", VERSION, ("bipline.compression.calibrate",))


def fingerprint() -> str:
    """See :meth:`steps.stage.Stage.fingerprint`."""
    return STAGE.fingerprint()


@step(cache_policy=cached_by(f"{__name__}.fingerprint"))
def calibrate(
    calibration_inputs: Resolution,
    evaluation_inputs: Resolution,
    section: Annotated[CalibrateSection, FROM_JSON],
) -> Annotated[Handle, "calibration"]:
    """Draw the calibration windows; the evaluation texts are read to refuse overlap."""
    model = calibration_inputs.model
    inputs = {
        "tokenizer": model.tokenizer_digest,
        "texts": text_digest(calibration_inputs),
        "evaluation": text_digest(evaluation_inputs.subset(evaluation_inputs.texts)),
    }
    # By name, because the key does not depend on the order of the mix.
    shares = sorted(section.texts.items())
    texts = {Path(calibration_inputs.texts[name].location): share for name, share in shares}
    evaluation = [Path(text.location) for text in evaluation_inputs.texts.values()]

    def produce(writer: DirectoryWriter) -> None:
        drawn = core.calibrate(
            Path(model.location), texts, section.samples, section.seqlen, section.seed, evaluation
        )
        core.save_calibration(drawn, writer)

    return STAGE.stored(STAGE.key(inputs, section), core.KIND, produce)
