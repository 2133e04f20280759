"""Tasks: what one process is told to do, as JSON. Results go into the store.

A task names its model and windows by place and digest, so it means the same in this process and
in another one.
"""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from bipline.comparison.rows import STAGE, RowInputs, measure_row, score_row
from bipline.settings.line import ComputeSettings
from bipline.settings.protocol import Protocol
from bipline.stages.evaluate import evaluate_dense
from bipline.stages.stage import Context
from bipline.storage.store import Handle, open_store
from bipline.values.combination import Combination
from bipline.values.resolution import Resolution


class Task(BaseModel):
    """Something to do against a store; ``compute.max_memory`` is each process's own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    store: str
    compute: ComputeSettings

    def perform(self) -> str:
        """Do it; the answer as JSON text."""
        raise NotImplementedError

    def context(self, seed: int = 0) -> Context:
        """What its stages share."""
        return Context(open_store(self.store), self.compute, seed)


class DenseTask(Task):
    """Measure the dense model; the answer is its record."""

    given: Resolution
    protocol: Protocol

    def perform(self) -> str:
        """See :func:`bipline.stages.evaluate.evaluate_dense`."""
        return evaluate_dense(self.context(), self.given, self.protocol).model_dump_json()


class ScoreTask(Task):
    """Take the statistics of criteria that can share sums: a combination of each, broadest first.

    The answer is a handle for each, in this order: its statistics, or why there are none.
    """

    given: Resolution
    calibration: Handle
    family: tuple[Combination, ...]

    def perform(self) -> str:
        """A member whose needs the sums of another meet runs no pass of its own."""
        found: list[Handle] = []
        for member in self.family:
            context = self.context(member.seed)
            found.append(score_row(context, self.given, self.calibration, member, found))
        return json.dumps([handle.model_dump(mode="json") for handle in found])


class RowTask(Task):
    """Measure one combination; ``keep`` is where its model goes, or nowhere."""

    row: RowInputs
    keep: Path | None

    def finished(self) -> bool:
        """Whether its outcome lies in the store, and its model where it is to be kept."""
        context = self.context(self.row.combination.seed)
        kept = self.keep is None or self.keep.is_dir()
        return kept and context.store.find(STAGE.name, self.row.key(context)) is not None

    def perform(self) -> str:
        """Its outcome."""
        context = self.context(self.row.combination.seed)
        return measure_row(context, self.row, self.keep).model_dump_json()


TASKS: dict[str, type[Task]] = {task.__name__: task for task in (DenseTask, ScoreTask, RowTask)}


def perform_text(kind: str, text: str) -> str:
    """Perform a task that came as its kind and JSON text."""
    return TASKS[kind].model_validate_json(text).perform()
