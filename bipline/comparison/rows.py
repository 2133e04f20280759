"""Rows: a combination becomes figures by the same line that makes a model to keep.

A row that turns out to be impossible on the way is an outcome like any other, with its reason.
What fails for other reasons (a full disk, a model that changed) is raised.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any

from bipline.base.errors import InvalidInput
from bipline.base.progress import silently
from bipline.comparison.grid import line_of, refusal_of
from bipline.compression.allocation import allocation_module
from bipline.compression.corrections import KIND as CORRECTIONS
from bipline.compression.criteria import load_criterion, needs_of, options_of
from bipline.settings.protocol import Protocol
from bipline.stages.allocate import STAGE as ALLOCATE
from bipline.stages.allocate import allocate
from bipline.stages.compensate import STAGE as COMPENSATE
from bipline.stages.compensate import compensate
from bipline.stages.evaluate import STAGE as EVALUATE
from bipline.stages.evaluate import evaluate, evaluate_dense
from bipline.stages.line import runs_windows
from bipline.stages.precision import settled
from bipline.stages.prune import STAGE as PRUNE
from bipline.stages.prune import prune
from bipline.stages.score import score
from bipline.stages.speed import STAGE as TIMING
from bipline.stages.speed import speed, speed_settings
from bipline.stages.stage import ENDED, Context, Stage, StageReport
from bipline.storage.digests import digest_json
from bipline.storage.directory import copy_directory
from bipline.storage.layered import LayeredStore
from bipline.storage.local_store import LocalStore
from bipline.storage.store import Handle, StoredGone
from bipline.values.combination import Combination
from bipline.values.comparison import Cost, Measured, Outcome
from bipline.values.figures import PRUNED
from bipline.values.plan import PruningPlan
from bipline.values.record import EvaluationRecord
from bipline.values.resolution import Resolution
from bipline.values.speed import Speeds

REFUSAL = "refusal"
Family = tuple[Combination, ...]
# The code of the stages that a row goes through, and of what is told of it.
CORES = ("bipline.compression.allocate", *COMPENSATE.modules, *PRUNE.modules, *EVALUATE.modules)
STAGE = Stage("row", "outcome", (*CORES, "bipline.values.comparison", *ALLOCATE.modules))
# What is asked for besides perplexity has keys of its own: a row that is finished stays so.
TASKS = Stage("row-tasks", "evaluation", STAGE.modules)
SPEED = Stage("row-speed", "speeds", (*STAGE.modules, *TIMING.modules))


@dataclass(frozen=True)
class RowInputs:
    """All that a row follows from: ``given`` holds the model and the evaluation texts.

    ``dense`` is the record that changes are against.
    """

    given: Resolution
    calibration: Handle
    statistics: Handle
    combination: Combination
    dense: EvaluationRecord
    protocol: Protocol

    def keys(self, context: Context) -> dict[Stage, str]:
        """The key of each part of its outcome: that of whoever asks for the same."""
        texts = self._key(context)
        found, tasks = {STAGE: texts}, self.given.tasks
        if tasks:
            dense = {name: task.model_dump() for name, task in self.dense.tasks.items()}
            inputs = {f"task {name}": task.sha256 for name, task in tasks.items()}
            found[TASKS] = TASKS.key(
                {"row": texts, "dense figures": digest_json(dense), **inputs},
                self.protocol.on_tasks.model_dump(mode="json"),
            )
        if self.protocol.speed:
            found[SPEED] = SPEED.key({"row": texts}, speed_settings(self.protocol))
        return found

    def _key(self, context: Context) -> str:
        inputs = {
            "model": self.given.model.identity,
            "scores": str(self.statistics.info.get("scores")),
            "windows": self.calibration.digest if runs_windows(line_of(self.combination)) else "",
            "dense": self.dense.tensor_digest,
            "dense figures": digest_json({n: t.value for n, t in self.dense.perplexity.items()}),
            **{f"text {name}": text.sha256 for name, text in self.given.texts.items()},
        }
        protocol = self.protocol.on_texts.model_dump(mode="json")
        # All that decides the outcome besides the content of model and texts.
        called = {"model", "calibration", "alias"}
        settings = {
            **self.combination.model_dump(mode="json", exclude=called),
            "protocol": protocol,
        }
        modules = (*CORES, allocation_module(self.combination.allocation.name))
        return STAGE.key(inputs, settings, context.computing, modules)


def families(rows: Iterable[Combination]) -> list[Family]:
    """A row of each criterion: those that may share a pass together, the broadest first.

    Rows share where they have model, calibration and seed in common; each search is a family of
    its own.
    """
    by_criterion = {row.scoring: row for row in rows}
    found: dict[tuple[str, int, str], list[Combination]] = {}
    for row in sorted(by_criterion.values(), key=lambda one: -_breadth(one)):
        needs = needs_of(row.criterion.name)
        shared = row.calibration, row.seed, needs.family or row.criterion.label
        found.setdefault(shared, []).append(row)
    return [tuple(family) for family in found.values()]


def score_rows(
    context: Context, given: Resolution, calibration: Handle, family: Family
) -> list[Handle]:
    """A handle for each of a family: its statistics, or why there are none.

    A member whose needs the sums of another meet runs no pass of its own.
    """
    context, found = settled(context, given.model, calibration), list[Handle]()
    for member in family:
        lenders = [other for other in found if other.kind != REFUSAL]
        try:
            scored = score(context, given.model, calibration, line_of(member).score, lenders)
        except InvalidInput as refusal:
            reason = _reason(refusal, context.store.location)
            scored = Handle(kind=REFUSAL, location="", digest=REFUSAL, info={"reason": reason})
        found.append(scored)
    return found


def dense_record(context: Context, given: Resolution, protocol: Protocol) -> EvaluationRecord:
    """The record of the dense model: texts and tasks are stored apart, so new ones alone cost.

    Speed is measured beside every row, where both take turns.
    """
    record = evaluate_dense(context, given.subset(given.texts), protocol.on_texts)
    texts, asked = record.protocol["texts"], dict[str, Any]()
    if given.tasks:
        answered = evaluate_dense(context, given.subset(tasks=given.tasks), protocol.on_tasks)
        record, asked = record.with_tasks_of(answered), answered.protocol
    told = protocol.described(texts, asked.get("tasks", {}), asked.get("task_versions"))
    return record.model_copy(update={"protocol": told})


def is_measured(context: Context, row: RowInputs, keep: Path | None = None) -> bool:
    """Whether all of a row's outcome lies in the Store, and its model where it is to be kept."""
    kept = keep is None or keep.is_dir()
    with silently():
        context = settled(context, row.given.model, row.calibration)
    return kept and all(
        context.store.find(stage.name, key) for stage, key in row.keys(context).items()
    )


def measure_row(context: Context, row: RowInputs, keep: Path | None = None) -> Outcome:
    """Allocate, compensate, prune and measure; the model goes again unless ``keep`` says where.

    What was measured before is found, and the model made again for the rest. A refusal is not
    stored: it costs little to find again, and it may have been the memory's.
    """
    sizes = row.calibration.info["samples"], row.calibration.info["seqlen"]
    checkpoint = context.opened(row.given.model)
    # The first reason there is, whether or not it was looked for before scoring.
    if early := refusal_of(checkpoint, row.combination, sizes, context.compute.max_memory):
        return Outcome(refusal=early)
    if row.statistics.kind == REFUSAL:
        return Outcome(refusal=str(row.statistics.info["reason"]))
    told = context.store.read_cost("score", row.statistics.key) or {}
    scored = Cost.model_validate({name: told[name] for name in told if name != ENDED})
    with silently():
        context = settled(context, row.given.model, row.calibration)
    keys, reports = row.keys(context), list[StageReport]()
    with silently(), context.store.work(STAGE.name, f"line-{keys[STAGE]}") as work:
        # What the row's stages make lies in a store of its own, and goes when the row is done.
        store = LayeredStore(context.store, LocalStore(work / "line"))
        inner = replace(context, store=store, report=reports.append)

        def measured(own: Path) -> Outcome:
            plan, _, model = _made(inner, row)
            texts = row.given.subset(row.given.texts)
            record = evaluate(inner, model, texts, row.protocol.on_texts)
            cost = reduce(Cost.plus, (report.cost or Cost() for report in reports), scored)
            experts = checkpoint.shape.num_experts
            return Outcome(measured=Measured.of(plan, record, row.dense, experts), cost=cost)

        try:
            outcome = STAGE.value(context, keys[STAGE], Outcome, measured)
            outcome = _with_more(context, inner, row, outcome, keys)
            if keep and not keep.is_dir():
                _keep(inner, row, keep)
        except InvalidInput as refusal:
            reason = _reason(refusal, context.store.location, str(work))
            return Outcome(refusal=reason, cost=scored)
    return outcome


def _with_more(
    context: Context, inner: Context, row: RowInputs, outcome: Outcome, keys: dict[Stage, str]
) -> Outcome:
    """An outcome with tasks and speed, where they are asked for.

    ``inner`` makes the model, where the outcome was found and it is gone.
    """
    found = outcome.measured
    if found is None:
        return outcome

    def answered(work: Path) -> EvaluationRecord:
        tasks = row.given.subset(tasks=row.given.tasks)
        return evaluate(inner, _made(inner, row)[2], tasks, row.protocol.on_tasks)

    def timed(work: Path) -> Speeds:
        return speed(inner, row.given.model, {PRUNED: _made(inner, row)[2]}, row.protocol)

    if TASKS in keys:
        record = TASKS.value(context, keys[TASKS], EvaluationRecord, answered)
        found = found.with_tasks(record, row.dense)
    if SPEED in keys:
        speeds = SPEED.value(context, keys[SPEED], Speeds, timed)
        found = found.model_copy(update={"speeds": speeds})
    # Of the whole protocol, whatever each part of it was measured under.
    whole = {"protocol_digest": row.dense.protocol_digest}
    return outcome.model_copy(update={"measured": found.model_copy(update=whole)})


def _made(context: Context, row: RowInputs) -> tuple[PruningPlan, Handle | None, Handle]:
    """A row's plan, corrections and model: found or made."""
    model, line = row.given.model, line_of(row.combination)
    plan = allocate(context, model, row.calibration, row.statistics, line.allocate)
    plan, corrections = compensate(context, model, row.calibration, plan, line.compensate)
    return (
        plan,
        corrections,
        prune(context, model, plan, corrections, line.prune, [context.store.open(row.calibration)]),
    )


def _keep(context: Context, row: RowInputs, final: Path) -> None:
    """Give a row's model its own name, made again where it has gone; the model comes last."""
    _, corrections, model = _made(context, row)
    if corrections:
        beside = final.with_name(f"{final.name}.{CORRECTIONS}")
        copy_directory(context.store.open(corrections), beside, replace=True)
    copy_directory(context.store.open(model), final, replace=True)


def _reason(refusal: InvalidInput, *places: str) -> str:
    """What was refused, without directories that only this run used.

    What is gone from the store is no refusal, and raised.
    """
    if isinstance(refusal, StoredGone):
        raise refusal
    own = [re.escape(each) for place in places for each in (str(Path(place).absolute()), place)]
    return re.sub(rf"(?:{'|'.join(own)})\S*: ", "", str(refusal))


def _breadth(row: Combination) -> int:
    """How many sums a criterion reads: the more, the more others may find in them."""
    name = row.criterion.name
    if not needs_of(name).sums:
        return 0
    return len(load_criterion(name).reads(options_of(name, row.seed, row.criterion.options)))
