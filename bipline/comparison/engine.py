"""The engine of ``bipline compare``: every combination of a grid, and nothing twice.

Model by model: the dense record first, then statistics once for all that can share them, then the
rows. What is finished lies in the folder by its key, so a run that was killed, or one with a
larger grid, computes only what is missing, and the rows come out the same.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from bipline.base.errors import InvalidInput
from bipline.base.progress import heading, note, ticking
from bipline.comparison.folder import MODELS, comparison_folder
from bipline.comparison.grid import Grid, check_grid, combinations, refusal_of
from bipline.comparison.inputs import (
    Inputs,
    Settings,
    check_windows,
    draw_windows,
    opened,
)
from bipline.comparison.keys import Keys
from bipline.comparison.pool import Perform, performing, processes_for, threads_for
from bipline.comparison.scoring import STAGE, Wanted, families
from bipline.comparison.tasks import (
    DenseTask,
    RowTask,
    ScoreTask,
    Setting,
    WantedCriterion,
    read_outcome,
    read_record,
)
from bipline.model.devices import choose_device
from bipline.storage.store import LocalStore
from bipline.values.combination import Combination
from bipline.values.comparison import (
    ComparedCalibration,
    ComparedModel,
    Comparison,
    Outcome,
    Row,
)
from bipline.values.resolution import Resolution


def compare(
    grid: Grid, inputs: Inputs, settings: Settings, out: Path, jobs: int = 1, keep: bool = False
) -> Comparison:
    """Measure every combination of a grid; ``out`` keeps what is finished, and models if asked.

    Raises InvalidInput before any work where the grid or the inputs can be seen to fail, or when
    another process works in ``out``; EnvironmentFailure when a worker or the disk fails.
    """
    check_grid(grid)
    if jobs < 1:
        raise InvalidInput(f"jobs {jobs}: must be at least 1")
    if jobs > 1 and choose_device(settings.device).type != "cpu":
        raise InvalidInput(f"jobs {jobs}: several processes run on the CPU only; give --device cpu")
    # Threads are part of a key, and jobs decide how many there are.
    with threads_for(jobs), comparison_folder(out) as store:
        work = _Work(grid, inputs, settings, store, out, keep)
        need = max(work.checked(model) for model in grid.models)
        processes, memory = processes_for(jobs, need, settings.max_memory)
        work.max_memory = memory
        with performing(processes) as perform:
            for model in grid.models:
                work.run(model, perform)
        return work.result()


@dataclass
class _Work:
    """The state of one run. ``refusals`` are those known so far, by statistics' key or row's."""

    grid: Grid
    inputs: Inputs
    settings: Settings
    store: LocalStore
    out: Path
    keep: bool
    max_memory: int | None = None
    refusals: dict[str, str] = field(default_factory=dict)
    outcomes: dict[str, Outcome] = field(default_factory=dict)

    @cached_property
    def keys(self) -> Keys:
        return Keys(self.inputs, self.settings)

    @cached_property
    def combinations(self) -> list[Combination]:
        return combinations(self.grid)

    def checked(self, model: str) -> int:
        """Look at all that can be seen without computing; bytes one process needs at most.

        Refused combinations are told apart here, and need no statistics.
        """
        checkpoint = opened(self.inputs.models[model])
        drawn = [
            draw_windows(
                self.inputs, self.settings, model, calibration, seed,
                (self.store, self.keys.calibration(model, calibration, seed)),
            )
            for calibration in self.grid.calibrations
            for seed in self.grid.seeds
        ]  # fmt: skip
        windows = (self.settings.samples, self.settings.seqlen)
        left = []
        for each in self._of(model):
            if reason := refusal_of(checkpoint, each, windows, self.settings.max_memory):
                self.outcomes[self._key(each)] = Outcome(refusal=reason)
            else:
                left.append(each)
        return check_windows(self.inputs, self.settings, model, left, drawn)

    def run(self, model: str, perform: Perform) -> None:
        """Dense record, statistics and rows of one model, as far as they are not finished."""
        heading(model)
        task = self._task(model)
        list(perform([DenseTask(**task, key=self.keys.dense(model))]))
        pending = self._pending(model)
        self._score(model, pending, perform)
        rows = [each for each in pending if self.keys.statistics(each) not in self.refusals]
        self._measure(model, rows, perform)
        for each in pending:
            if reason := self.refusals.get(self.keys.statistics(each)):
                self.outcomes[self._key(each)] = Outcome(refusal=reason)

    def result(self) -> Comparison:
        """Everything, in the order of the grid."""
        return Comparison(
            models={name: self._model(name, held) for name, held in self.inputs.models.items()},
            calibrations={
                name: ComparedCalibration(
                    source=text.source,
                    sha256=text.sha256,
                    samples=self.settings.samples,
                    seqlen=self.settings.seqlen,
                )
                for name, text in self.inputs.calibrations.items()
            },
            rows=tuple(self._row(each) for each in self.combinations),
        )

    def _pending(self, model: str) -> list[Combination]:
        """Combinations without an outcome yet; those finished earlier get theirs here."""
        pending, finished = [], 0
        for each in self._of(model):
            key = self._key(each)
            if key in self.outcomes:
                continue
            outcome = read_outcome(self.store, key)
            directory = self._directory(each)
            if outcome and (directory is None or directory.is_dir()):
                self.outcomes[key] = outcome
                finished += 1
            else:
                pending.append(each)
        if finished:
            note(f"{finished} rows were finished before")
        return pending

    def _score(self, model: str, pending: Sequence[Combination], perform: Perform) -> None:
        tasks = list(self._score_tasks(model, pending))
        for _, answer in perform(tasks):
            self.refusals.update(json.loads(answer))

    def _score_tasks(self, model: str, pending: Sequence[Combination]) -> Iterator[ScoreTask]:
        """A task for each family of criteria with the same windows."""
        needed = {self.keys.statistics(each) for each in pending}
        sets: dict[str, dict[str, Wanted]] = {}
        for each in self._of(model):
            key = self.keys.statistics(each)
            missing = key in needed and self.store.find(STAGE, key) is None
            calibration = self.keys.calibration(model, each.calibration, each.seed)
            wanted = Wanted(each.criterion, each.seed, key, missing)
            sets.setdefault(calibration, {})[key] = wanted
        for calibration, wanted_by_key in sets.items():
            for family in families(list(wanted_by_key.values())):
                members = tuple(WantedCriterion(**vars(each)) for each in family)
                yield ScoreTask(**self._task(model), calibration=calibration, family=members)

    def _measure(self, model: str, rows: Sequence[Combination], perform: Perform) -> None:
        tasks = {self._key(each): self._row_task(model, each) for each in rows}
        if not tasks:
            return
        start, total = time.perf_counter(), len(tasks)
        with ticking(f"rows of {model}", total) as tick:
            for done, (task, answer) in enumerate(perform(list(tasks.values())), start=1):
                tick()
                row, outcome = cast("RowTask", task), Outcome.model_validate_json(answer)
                self.outcomes[row.key] = outcome
                left = (time.perf_counter() - start) / done * (total - done)
                note(f"row {done} of {total}: {_told(row.combination, outcome)}{_left(left)}")

    def _row_task(self, model: str, combination: Combination) -> RowTask:
        directory = self._directory(combination)
        return RowTask(
            **self._task(model),
            key=self._key(combination),
            combination=combination,
            calibration=self.keys.calibration(model, combination.calibration, combination.seed),
            statistics=self.keys.statistics(combination),
            dense=self.keys.dense(model),
            directory=directory and str(directory),
        )

    def _task(self, model: str) -> dict[str, Any]:
        """What every task about a model is told."""
        resolved, settings = self.inputs.models[model].model, self.settings
        setting = Setting(
            store=str(self.store.root),
            texts={name: str(path) for name, path in self.inputs.texts.items()},
            protocol=settings.protocol,
            device=settings.device,
            micro_batch=settings.micro_batch,
            max_memory=self.max_memory,
        )
        digest = resolved.tensor_digest
        return {"setting": setting, "location": resolved.location, "tensor_digest": digest}

    def _row(self, combination: Combination) -> Row:
        place = self._directory(combination)
        shown = None if place is None else place.relative_to(self.out).as_posix()
        return Row.of(combination, self.outcomes[self._key(combination)], shown)

    def _model(self, name: str, held: Resolution) -> ComparedModel:
        return ComparedModel(
            source=held.model.source,
            revision=held.model.revision,
            licence=held.model.licence,
            record=read_record(self.store, self.keys.dense(name)),
        )

    def _directory(self, combination: Combination) -> Path | None:
        """Where a kept model goes: a name to read, and its key to tell alike ones apart."""
        if not self.keep:
            return None
        # By its own names: what auto stands for is the same model, and kept once.
        words = f"{combination.model} {combination.unnamed.label}"
        name = re.sub(r"[^A-Za-z0-9.]+", "-", words).strip("-.")
        return self.out / MODELS / f"{name}-{self._key(combination)[:8]}"

    def _of(self, model: str) -> list[Combination]:
        return [each for each in self.combinations if each.model == model]

    def _key(self, combination: Combination) -> str:
        return self.keys.row(combination)


def _told(combination: Combination, outcome: Outcome) -> str:
    """A row in one line of the progress display."""
    if outcome.measured is None:
        return f"{combination.label}: refused: {outcome.refusal}"
    figures = ", ".join(
        f"{name} {found.value:.2f} ({outcome.measured.change[name].perplexity:+.2f})"
        for name, found in outcome.measured.perplexity.items()
    )
    return f"{combination.label}: {figures}"


def _left(seconds: float) -> str:
    """The time left, as far as the rows so far tell."""
    if seconds < 1:
        return ""
    return (
        f"; about {seconds:.0f} s left" if seconds < 90 else f"; about {seconds / 60:.0f} min left"
    )
