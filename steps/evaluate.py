"""Evaluate: the dense model and what became of it, under one protocol."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from zenml import step

from bipline.artifacts.record import EvaluationRecord
from bipline.artifacts.resolution import Resolution
from bipline.artifacts.store import Handle
from bipline.config import EvaluateSection
from bipline.quality import evaluate as core
from steps.stage import FROM_JSON, Stage, cached_by, dense_checkpoint, text_digest

VERSION = "1"
STAGE = Stage("evaluate", VERSION, ("bipline.quality.evaluate",))


def fingerprint() -> str:
    """See :meth:`steps.stage.Stage.fingerprint`."""
    return STAGE.fingerprint()


@step(cache_policy=cached_by(f"{__name__}.fingerprint"))
def evaluate_dense(
    evaluation_inputs: Resolution, section: Annotated[EvaluateSection, FROM_JSON]
) -> Annotated[EvaluationRecord, "dense_record"]:
    """Measure the model that everything is compared with."""
    directory = dense_checkpoint(evaluation_inputs).directory
    return _record(directory, evaluation_inputs.subset().digest, evaluation_inputs, section)


@step(cache_policy=cached_by(f"{__name__}.fingerprint"))
def evaluate(
    subject: Handle, evaluation_inputs: Resolution, section: Annotated[EvaluateSection, FROM_JSON]
) -> Annotated[EvaluationRecord, "record"]:
    """Measure a pruned or recovered model."""
    return _record(Path(subject.location), subject.digest, evaluation_inputs, section)


def _record(
    directory: Path, digest: str, given: Resolution, section: EvaluateSection
) -> EvaluationRecord:
    texts = {name: Path(given.texts[name].location) for name in section.texts}
    tasks = {name: Path(given.tasks[name].location) for name in section.tasks}
    key = STAGE.key({"model": digest, "texts": text_digest(given)}, section)
    return STAGE.stored_value(
        key,
        "evaluation",
        EvaluationRecord,
        lambda: core.evaluate(directory, section.protocol, texts, tasks),
    )
