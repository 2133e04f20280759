"""The engine of ``bipline compare``: every combination of a grid, and nothing twice.

Model by model: the dense record first, then statistics once for all that can share them, then the
rows. What is finished lies in the folder by its key, so a run that was killed, or one with a
larger grid, computes only what is missing, and the rows come out the same.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bipline.base.errors import InvalidInput
from bipline.base.progress import heading, note, ticking
from bipline.comparison.folder import MODELS, comparison_folder
from bipline.comparison.grid import check_some_run, combinations, refusal_of
from bipline.comparison.inputs import (
    Inputs,
    check_windows,
    comparison_of,
    mixtures_of,
    with_samples,
)
from bipline.comparison.pool import Perform, Task, performing, processes_for, threads_for
from bipline.comparison.rows import (
    RowInputs,
    dense_record,
    families,
    is_measured,
    measure_row,
    score_rows,
)
from bipline.compression.calibrate import load_calibration
from bipline.model.devices import choose_device
from bipline.model.opening import open_checkpoint
from bipline.model.tokenizer import tokenizer_of
from bipline.quality.zero_shot import check_tasks, model_questions
from bipline.settings.line import ComputeSettings
from bipline.settings.sweep import ComparisonSettings
from bipline.stages.calibrate import calibrate
from bipline.stages.stage import Context
from bipline.storage.store import Handle, Store
from bipline.values.combination import Combination
from bipline.values.comparison import Comparison, Outcome, Row
from bipline.values.record import EvaluationRecord
from bipline.values.resolution import Resolution, ResolvedTask, ResolvedText


def compare(
    settings: ComparisonSettings, inputs: Inputs, out: Path, jobs: int = 1, keep: bool = False
) -> Comparison:
    """Measure every combination of a grid; ``out`` keeps what is finished, and models if asked.

    Raises InvalidInput before any work where the grid or the inputs can be seen to fail, or when
    another process works in ``out``; EnvironmentFailure when a worker or the disk fails.
    """
    rows = combinations(
        settings, list(inputs.models), list(inputs.calibrations), mixtures_of(inputs)
    )
    if jobs < 1:
        raise InvalidInput(f"jobs {jobs}: must be at least 1")
    if jobs > 1 and settings.evaluate.protocol.speed:
        raise InvalidInput(f"jobs {jobs}: speed is measured by one process alone; leave out --jobs")
    if jobs > 1 and choose_device(settings.compute.device).type != "cpu":
        raise InvalidInput(f"jobs {jobs}: several processes run on the CPU only; give --device cpu")
    settings = with_samples(settings, inputs, rows)
    # Threads are part of a key, and jobs decide how many there are.
    with threads_for(jobs), comparison_folder(out) as store:
        works = [
            _Model(
                name, given, [row for row in rows if row.model == name], settings, store,
                settings.compute, out if keep else None,
            )
            for name, given in inputs.models.items()
        ]  # fmt: skip
        need = max(work.check(inputs.calibrations) for work in works)
        check_some_run(each for work in works for each in work.refusals)
        processes, memory = processes_for(jobs, need, settings.compute.max_memory)
        with performing(processes) as perform:
            for work in works:
                work.compute = settings.compute.model_copy(update={"max_memory": memory})
                work.run(perform)
    return comparison_of(
        {work.name: (work.given.model, work.dense) for work in works},
        {name: ([text], works[0].drawn_from(name)) for name, text in inputs.calibrations.items()},
        (row for work in works for row in work.finished),
    )


@dataclass
class _Model:
    """One model's part of a comparison, and how far it has come.

    ``compute`` is what a process may use. ``windows`` and ``statistics`` are by calibration text
    and seed, statistics by criterion too; ``outcomes`` by the combination's digest. ``out`` is
    where models are kept, or None.
    """

    name: str
    given: Resolution
    rows: list[Combination]
    settings: ComparisonSettings
    store: Store
    compute: ComputeSettings
    out: Path | None
    dense: EvaluationRecord = field(init=False)
    windows: dict[tuple[str, int], Handle] = field(default_factory=dict)
    statistics: dict[tuple[str, int, str], Handle] = field(default_factory=dict)
    outcomes: dict[str, Outcome] = field(default_factory=dict)

    def check(self, calibrations: Mapping[str, ResolvedText]) -> int:
        """Look at all that can be seen without computing; bytes one process needs at most.

        Refused combinations are told apart here, and need no statistics.
        """
        given, section = self.given, self.settings.calibrate
        checkpoint = open_checkpoint(given.model.location, given.model.tensor_digest)
        for name, seed in dict.fromkeys(row.drawing for row in self.rows):
            drawn = section.model_copy(update={"texts": {name: 1.0}})
            self.windows[name, seed] = calibrate(
                Context(self.store, self.compute, seed), given.model, calibrations, drawn, (),
                given.texts.values(),
            )  # fmt: skip
        for row in self.rows:
            told = self.windows[row.drawing].info
            sizes = told["samples"], told["seqlen"]
            if reason := refusal_of(checkpoint, row, sizes, self.compute.max_memory):
                self.outcomes[row.unnamed.digest] = Outcome(refusal=reason)
        windows = [
            load_calibration(self.store.open(handle)).token_ids for handle in self.windows.values()
        ]
        texts, tasks = list(given.texts.values()), _places(given.tasks)
        protocol, tokenizer = self.settings.evaluate.protocol, tokenizer_of(checkpoint.folder)
        check_tasks(tasks)
        model_questions(checkpoint, tokenizer, tasks, protocol)
        return check_windows(checkpoint, texts, self.settings, self._pending, windows)

    def run(self, perform: Perform) -> None:
        """Dense record, statistics and rows, as far as they are not finished."""
        heading(self.name)
        dense = self._task(dense_record, 0, self.given, self.settings.evaluate.protocol)
        [(_, self.dense)] = perform({self.name: dense})
        scoring = {
            tuple(row.scoring for row in family): self._task(
                score_rows, family[0].seed, self.given, self.windows[family[0].drawing], family
            )
            for family in families(self._pending)
        }
        for scored, found in perform(scoring):
            self.statistics.update(zip(scored, found, strict=True))
        self._measure(perform)

    def drawn_from(self, calibration: str) -> Handle:
        """Windows of a calibration text: of every seed there are as many, and as long."""
        return next(found for (name, _), found in self.windows.items() if name == calibration)

    @property
    def finished(self) -> list[Row]:
        """All rows in the order of the grid."""
        return [
            Row.of(row, self.outcomes[row.unnamed.digest], _place(row) if self.out else None)
            for row in self.rows
        ]

    @property
    def refusals(self) -> list[tuple[Combination, str | None]]:
        """All rows, with why they are refused as far as it is known."""
        outcomes = [self.outcomes.get(row.unnamed.digest, Outcome()) for row in self.rows]
        return [(row, each.refusal) for row, each in zip(self.rows, outcomes, strict=True)]

    @property
    def _pending(self) -> list[Combination]:
        return [row for row in self.rows if row.unnamed.digest not in self.outcomes]

    def _measure(self, perform: Perform) -> None:
        # What auto stands for may be in the grid by its own names too: it is measured once.
        rows = {row.unnamed.digest: row for row in self._pending}
        tasks = {digest: self._row_task(row) for digest, row in rows.items()}
        known = [digest for digest in tasks if replace(tasks[digest], act=is_measured).perform()]
        self.outcomes |= {digest: tasks.pop(digest).perform() for digest in known}
        if known:
            note(f"{len(known)} rows were finished before")
        start, total = time.perf_counter(), len(tasks)
        if not total:
            return
        with ticking(f"rows of {self.name}", total) as tick:
            for done, (digest, outcome) in enumerate(perform(tasks), start=1):
                tick()
                self.outcomes[digest] = outcome
                left = (time.perf_counter() - start) / done * (total - done)
                note(f"row {done} of {total}: {_told(rows[digest], outcome)}{_left(left)}")

    def _row_task(self, row: Combination) -> Task:
        inputs = RowInputs(
            given=self.given,
            calibration=self.windows[row.drawing],
            statistics=self.statistics[row.scoring],
            combination=row,
            dense=self.dense,
            protocol=self.settings.evaluate.protocol,
        )
        keep = self.out / _place(row) if self.out else None
        return self._task(measure_row, row.seed, inputs, keep)

    def _task(self, act: Callable[..., Any], seed: int, *arguments: Any) -> Task:
        return Task(act, arguments, self.store, self.compute, seed)


def _places(tasks: Mapping[str, ResolvedTask]) -> dict[str, Path]:
    return {name: Path(task.location) for name, task in tasks.items()}


def _place(row: Combination) -> str:
    """Where below OUT a kept model goes: a name to read, and a digest to tell alike ones apart."""
    # By its own names: what auto stands for is the same model, and kept once.
    words = f"{row.model} {row.unnamed.label}"
    name = re.sub(r"[^A-Za-z0-9.]+", "-", words).strip("-.")
    return f"{MODELS}/{name}-{row.unnamed.digest[:8]}"


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
