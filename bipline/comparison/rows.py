"""Rows: a combination becomes figures by the same line that makes a model to keep.

A row that turns out to be impossible on the way is an outcome like any other, with its reason.
What fails for other reasons (a full disk, a model that changed) is raised.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from bipline.base.errors import InvalidInput
from bipline.base.progress import silently
from bipline.comparison.grid import (
    allocate_settings,
    compensate_settings,
    runs_windows,
    score_settings,
)
from bipline.compression.allocation import allocation_module
from bipline.compression.corrections import KIND as CORRECTIONS
from bipline.settings.line import PruneSettings
from bipline.settings.protocol import Protocol
from bipline.stages.allocate import allocate
from bipline.stages.compensate import compensate
from bipline.stages.evaluate import evaluate
from bipline.stages.prune import prune
from bipline.stages.score import score
from bipline.stages.stage import Context, Stage, StageReport
from bipline.storage.directory import copy_directory
from bipline.storage.layered import LayeredStore
from bipline.storage.local_store import LocalStore
from bipline.storage.store import Handle
from bipline.values.combination import Combination
from bipline.values.comparison import Change, Compensated, Cost, Measured, Outcome, Parameters
from bipline.values.plan import PruningPlan
from bipline.values.record import EvaluationRecord
from bipline.values.resolution import Resolution

CORE = "bipline.comparison.rows"
STAGE = Stage("row", "outcome", (CORE,))


class RowInputs(BaseModel):
    """All that a row follows from: ``given`` holds the model and the evaluation texts.

    ``dense`` is the record that changes are against.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    given: Resolution
    calibration: Handle
    statistics: Handle
    combination: Combination
    dense: EvaluationRecord
    protocol: Protocol

    @property
    def digests(self) -> dict[str, str]:
        """Digests of all of it but the combination and the protocol."""
        windows = self.calibration.digest if runs_windows(self.combination) else ""
        return {
            "model": self.given.model.identity,
            "scores": str(self.statistics.info["scores"]),
            "windows": windows,
            "dense": self.dense.tensor_digest,
            **{f"text {name}": text.sha256 for name, text in self.given.texts.items()},
        }


@dataclass(frozen=True)
class MadeModel:
    """A row's model as long as its store is there."""

    plan: PruningPlan
    corrections: Handle | None
    model: Handle


def score_row(
    context: Context,
    given: Resolution,
    calibration: Handle,
    combination: Combination,
    others: Sequence[Handle] = (),
) -> Handle | str:
    """The statistics of a combination's criterion, or the reason why there are none."""
    try:
        found = score(context, given.model, calibration, score_settings(combination), others)
    except InvalidInput as refusal:
        return str(refusal)
    if found is None:
        raise RuntimeError("a row is scored by one process")
    return found


def measure_row(context: Context, row: RowInputs, keep: Path | None = None) -> Outcome:
    """Allocate, compensate, prune and measure; the model goes again unless ``keep`` says where.

    A refusal is not stored: it costs little to find again, and it may have been the memory's.
    """
    scored = Cost.model_validate(context.store.read_cost("score", row.statistics.key) or {})
    protocol = row.protocol.model_dump(mode="json")
    modules = (CORE, allocation_module(row.combination.allocation.name))
    key = STAGE.key(
        row.digests, {**row.combination.settings(), "protocol": protocol}, context.computing,
        modules,
    )  # fmt: skip
    try:
        with silently():
            outcome = STAGE.value(
                context, key, Outcome, lambda work: _measured(context, row, scored, work, keep)
            )
            if keep and not keep.is_dir():  # measured before; now for its model alone
                with context.store.work("row-model", key) as work:
                    inner, _ = _within(context, work)
                    _keep(inner, _made(inner, row), keep)
    except InvalidInput as refusal:
        # Directories that only this run used are no part of the reason.
        own = rf"{re.escape(context.store.location)}\S*: "
        return Outcome(refusal=re.sub(own, "", str(refusal)), cost=scored)
    return outcome


def _within(context: Context, work: Path) -> tuple[Context, list[StageReport]]:
    """The same with a store of the row's own over the shared one, and what its stages tell."""
    reports: list[StageReport] = []
    store = LayeredStore(context.store, LocalStore(work / "line"))
    return replace(context, store=store, report=reports.append), reports


def _made(context: Context, row: RowInputs) -> MadeModel:
    model, tried = row.given.model, row.combination
    plan = allocate(context, model, row.calibration, row.statistics, allocate_settings(tried))
    plan, corrections = compensate(
        context, model, row.calibration, plan, compensate_settings(tried)
    )
    pruned = prune(context, model, plan, corrections, PruneSettings())
    return MadeModel(plan, corrections, pruned)


def _measured(
    context: Context, row: RowInputs, scored: Cost, work: Path, keep: Path | None
) -> Outcome:
    inner, reports = _within(context, work)
    made = _made(inner, row)
    record = evaluate(inner, made.model, row.given, row.protocol)
    if keep:
        _keep(inner, made, keep)
    cost = scored
    for report in reports:
        cost = cost.plus(report.cost or Cost())
    return Outcome(measured=_figures(made.plan, record, row.dense), cost=cost)


def _keep(context: Context, made: MadeModel, final: Path) -> None:
    """Give a measured model its own name; a model that has its name is finished."""
    if made.corrections:
        beside = final.with_name(f"{final.name}.{CORRECTIONS}")
        copy_directory(context.store.open(made.corrections), beside, replace=True)
    copy_directory(context.store.open(made.model), final, replace=True)


def _figures(plan: PruningPlan, record: EvaluationRecord, dense: EvaluationRecord) -> Measured:
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
