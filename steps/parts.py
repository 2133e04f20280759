"""Parts of one stage as parallel steps, and the steps where they meet: the bits of a single one."""

from __future__ import annotations

from typing import Annotated

from bipline.settings.line import ComputeSettings, ScoreSettings
from bipline.settings.protocol import Protocol
from bipline.stages import score
from bipline.stages.evaluate import Subject, dense_subject, made_subject
from bipline.storage.store import Handle
from bipline.values.partial_evaluation import PartialEvaluation
from bipline.values.record import EvaluationRecord
from bipline.values.resolution import Resolution
from steps.stage import Parameter, cached_by, context, settled_context


@cached_by("steps.line.score_fingerprint")
def score_part(
    model: Resolution,
    calibration: Handle,
    settings: Parameter[ScoreSettings],
    compute: Parameter[ComputeSettings],
    seed: int,
    index: int,
) -> Annotated[Handle, "partial_statistics"]:
    """The sums of one part of the calibration windows: parts run wherever there is room."""
    here = settled_context(compute, seed, model, calibration)
    return score.score_part(here, model.model, calibration, settings, index)


@cached_by("steps.line.score_fingerprint")
def reduce_scores(
    model: Resolution,
    calibration: Handle,
    parts: list[Handle],
    settings: Parameter[ScoreSettings],
    compute: Parameter[ComputeSettings],
    seed: int,
) -> Annotated[Handle, "statistics"]:
    """Add the parts' sums in chunk order and score: the bits of a single pass."""
    here = settled_context(compute, seed, model, calibration)
    return score.reduce_scores(here, model.model, calibration, parts, settings)


@cached_by("steps.line.evaluate_fingerprint")
def evaluate_part(
    evaluation_inputs: Resolution,
    protocol: Parameter[Protocol],
    compute: Parameter[ComputeSettings],
    name: str,
    index: int,
    parts: int,
    subject: Handle | None = None,
) -> Annotated[PartialEvaluation, "partial_record"]:
    """One part of what is measured of a model: the dense one where no other is given."""
    model = _subject(subject, evaluation_inputs, protocol, compute, name)
    return model.measure_part(evaluation_inputs, protocol, (index, parts))


@cached_by("steps.line.evaluate_fingerprint")
def join_parts(
    evaluation_inputs: Resolution,
    parts: list[PartialEvaluation],
    protocol: Parameter[Protocol],
    compute: Parameter[ComputeSettings],
    name: str,
    subject: Handle | None = None,
) -> Annotated[EvaluationRecord, "{model}_record"]:
    """The record of a model that was measured in parts; none of its weights is read."""
    model = _subject(subject, evaluation_inputs, protocol, compute, name)
    return model.join(evaluation_inputs, protocol, parts)


def _subject(
    subject: Handle | None,
    given: Resolution,
    protocol: Protocol,
    compute: ComputeSettings,
    name: str,
) -> Subject:
    here = context(compute)
    if subject is None:
        return dense_subject(here, given, protocol)
    return made_subject(here, subject, name)
