"""Measure: one combination becomes figures. Allocate, prune, evaluate, and compare with dense.

A combination that turns out to be impossible on the way is an outcome like any other, with its
reason. What fails for other reasons (a full disk, a model that changed) is raised.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bipline.artifacts.comparison import (
    Change,
    Combination,
    Measured,
    Outcome,
    Parameters,
)
from bipline.artifacts.errors import InvalidInput
from bipline.artifacts.plan import PruningPlan
from bipline.artifacts.record import EvaluationRecord
from bipline.compression.allocate import allocate
from bipline.compression.allocation.problem import Windows
from bipline.compression.prune import prune
from bipline.compression.statistics import load_statistics
from bipline.model.checkpoint import Checkpoint
from bipline.quality.comparison.grid import request_of
from bipline.quality.comparison.meter import metered
from bipline.quality.comparison.scoring import cost_of
from bipline.quality.evaluate import Running, evaluate
from bipline.quality.protocols import Protocol


@dataclass(frozen=True)
class Evaluation:
    """How every model is measured: texts by name, the protocol, and where it runs."""

    texts: Mapping[str, Path]
    protocol: Protocol
    running: Running = field(default_factory=Running)

    def record(self, model: Path) -> EvaluationRecord:
        """The record of a model directory (see :func:`bipline.quality.evaluate.evaluate`)."""
        return evaluate(model, self.protocol, self.texts, {}, self.running)


def measure(
    checkpoint: Checkpoint,
    statistics: Path,
    combination: Combination,
    windows: Windows | None,
    evaluation: Evaluation,
    dense: EvaluationRecord,
    place: Path,
) -> Outcome:
    """Prune ``checkpoint`` into ``place``, which must not exist, and measure what lies there.

    ``statistics`` is where :mod:`.scoring` wrote them; what they cost counts too. ``windows`` are
    for rules that run some; ``dense`` is the record the changes are against.
    Raises Refused or EnvironmentFailure where something other than the combination is at fault.
    """
    _, scores = load_statistics(statistics)
    scored = cost_of(statistics)
    with metered() as meter:
        try:
            with meter.stage("allocate"):
                plan = allocate(checkpoint, scores, request_of(combination), windows)
            with meter.stage("prune"):
                prune(checkpoint, plan, place)
            with meter.stage("evaluate"):
                record = evaluation.record(place)
        except InvalidInput as refusal:
            # A directory that only this run used is no part of the reason.
            return Outcome(refusal=str(refusal).replace(f"{place}: ", ""), cost=scored)
        return Outcome(measured=_measured(plan, record, dense), cost=scored.plus(meter.cost()))


def _measured(plan: PruningPlan, record: EvaluationRecord, dense: EvaluationRecord) -> Measured:
    changes = {
        name: Change(
            nll=found.nll - dense.perplexity[name].nll,
            perplexity=found.value - dense.perplexity[name].value,
        )
        for name, found in record.perplexity.items()
    }
    return Measured(
        plan_digest=plan.digest,
        tensor_digest=record.tensor_digest,
        protocol_digest=record.protocol_digest,
        parameters=Parameters(before=dense.parameters, after=record.parameters),
        ratio=plan.budget,
        widths=tuple(block.widths for block in plan.blocks),
        file_bytes=record.file_bytes,
        perplexity=record.perplexity,
        change=changes,
    )
