"""Evaluate: the dense model and what became of it, under one protocol."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from zenml import step

from bipline.base.errors import Refused
from bipline.model.devices import choose_device
from bipline.quality import evaluate as core
from bipline.settings.compress import EvaluateSection
from bipline.storage.store import Handle
from bipline.values.record import EvaluationRecord
from bipline.values.resolution import Resolution
from steps.stage import FROM_JSON, Stage, cached_by, text_digest

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
    model = evaluation_inputs.model
    place, digest = Path(model.location), evaluation_inputs.subset().digest
    return _record(place, digest, evaluation_inputs, section, model.tensor_digest)


@step(cache_policy=cached_by(f"{__name__}.fingerprint"))
def evaluate(
    subject: Handle, evaluation_inputs: Resolution, section: Annotated[EvaluateSection, FROM_JSON]
) -> Annotated[EvaluationRecord, "record"]:
    """Measure a pruned or recovered model."""
    return _record(Path(subject.location), subject.digest, evaluation_inputs, section)


def _record(
    directory: Path,
    digest: str,
    given: Resolution,
    section: EvaluateSection,
    expected: str | None = None,
) -> EvaluationRecord:
    texts = {name: Path(given.texts[name].location) for name in section.texts}
    tasks = {name: Path(given.tasks[name].location) for name in section.tasks}
    key = STAGE.key({"model": digest, "texts": text_digest(given)}, section)

    running = core.Running(choose_device(section.device))

    def measure() -> EvaluationRecord:
        record = core.evaluate(directory, section.protocol, texts, tasks, running)
        if expected not in (None, record.tensor_digest):
            raise Refused(f"{directory}: its weights changed while the run was going on")
        return record

    return STAGE.stored_value(key, "evaluation", EvaluationRecord, measure)
