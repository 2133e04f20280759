"""Evaluate: the dense model and what became of it, under one protocol."""

from __future__ import annotations

from typing import Annotated

from zenml import step

from bipline.settings.line import ComputeSettings
from bipline.settings.protocol import Protocol
from bipline.stages import evaluate as stage
from bipline.storage.store import Handle
from bipline.values.record import EvaluationRecord
from bipline.values.resolution import Resolution
from steps.stage import FROM_JSON, cached_by, context

fingerprint = stage.STAGE.fingerprint


@step(cache_policy=cached_by(f"{__name__}.fingerprint"))
def evaluate_dense(
    evaluation_inputs: Resolution,
    protocol: Annotated[Protocol, FROM_JSON],
    compute: Annotated[ComputeSettings, FROM_JSON],
) -> Annotated[EvaluationRecord, "dense_record"]:
    """Measure the model that everything is compared with."""
    return stage.evaluate_dense(context(compute), evaluation_inputs, protocol)


@step(cache_policy=cached_by(f"{__name__}.fingerprint"))
def evaluate(
    subject: Handle,
    evaluation_inputs: Resolution,
    protocol: Annotated[Protocol, FROM_JSON],
    compute: Annotated[ComputeSettings, FROM_JSON],
    name: str,
) -> Annotated[EvaluationRecord, "record"]:
    """Measure a pruned or recovered model."""
    return stage.evaluate(context(compute), subject, evaluation_inputs, protocol, name)
