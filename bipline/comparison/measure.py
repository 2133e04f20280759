"""Measure: a combination becomes figures. Allocate, compensate, prune, evaluate beside dense.

A combination that turns out to be impossible on the way is an outcome like any other, with its
reason. What fails for other reasons (a full disk, a model that changed) is raised.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bipline.base.errors import InvalidInput
from bipline.comparison.grid import request_of
from bipline.comparison.meter import metered
from bipline.comparison.methods import compensation_of
from bipline.comparison.scoring import cost_of
from bipline.compression.allocate import allocate
from bipline.compression.allocation.problem import Windows
from bipline.compression.compensation.realise import realise_in
from bipline.compression.corrections import KIND as CORRECTIONS
from bipline.compression.corrections import Corrections
from bipline.compression.prune import prune
from bipline.compression.statistics import load_statistics
from bipline.model.checkpoint import Checkpoint
from bipline.quality.evaluate import Running, evaluate
from bipline.settings.protocol import Protocol
from bipline.values.combination import Combination
from bipline.values.comparison import Change, Compensated, Measured, Outcome, Parameters
from bipline.values.plan import PruningPlan
from bipline.values.record import EvaluationRecord


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
    work: Path,
) -> Outcome:
    """Prune ``checkpoint`` into ``place``, which must not exist, and measure what lies there.

    ``statistics`` is where :mod:`.scoring` wrote them; what they cost counts too. ``windows`` are
    for rules that run some and for compensation; ``dense`` is the record the changes are against.
    Corrections come to lie in ``work``, with the blocks that a killed run had corrected.
    Raises Refused or EnvironmentFailure where something other than the combination is at fault.
    """
    _, scores = load_statistics(statistics)
    scored = cost_of(statistics)
    with metered() as meter:
        try:
            with meter.stage("allocate"):
                plan = allocate(checkpoint, scores, request_of(combination), windows)
            corrections = None
            if combination.compensates:
                with meter.stage("compensate"):
                    plan, corrections = _corrected(checkpoint, plan, combination, windows, work)
            with meter.stage("prune"):
                prune(checkpoint, plan, place, corrections=corrections)
            with meter.stage("evaluate"):
                record = evaluation.record(place)
        except InvalidInput as refusal:
            # Directories that only this run used are no part of the reason.
            reason = str(refusal).replace(f"{place}: ", "").replace(f"{work}: ", "")
            return Outcome(refusal=reason, cost=scored)
        return Outcome(measured=_measured(plan, record, dense), cost=scored.plus(meter.cost()))


def _corrected(
    checkpoint: Checkpoint,
    plan: PruningPlan,
    combination: Combination,
    windows: Windows | None,
    work: Path,
) -> tuple[PruningPlan, Corrections]:
    """The plan as it is carried out, and its corrections."""
    if windows is None:
        raise ValueError("compensation needs the windows")
    place, request = work / CORRECTIONS, compensation_of(combination.compensation)
    shutil.rmtree(place, ignore_errors=True)  # a killed run's: made again of its blocks
    return realise_in(place, checkpoint, plan, windows, request, work / "compensate")


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
        compensated=Compensated.of(plan.compensated) if plan.compensated else None,
        file_bytes=record.file_bytes,
        perplexity=record.perplexity,
        change=changes,
    )
