"""The engine of ``bipline compare``: every combination of a grid, and nothing twice.

Model by model: the dense record first, then statistics once for all that can share them, then the
rows. What is finished lies in the folder by its key, so a run that was killed, or one with a
larger grid, computes only what is missing, and the rows come out the same.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bipline.base.errors import InvalidInput
from bipline.base.progress import heading, note, ticking
from bipline.comparison.folder import MODELS, comparison_folder
from bipline.comparison.grid import combinations, refusal_of
from bipline.comparison.inputs import (
    Inputs,
    check_windows,
    compared_calibration,
    compared_model,
)
from bipline.comparison.pool import Perform, performing, processes_for, threads_for
from bipline.comparison.rows import RowInputs
from bipline.comparison.scoring import families
from bipline.comparison.tasks import DenseTask, RowTask, ScoreTask
from bipline.compression.calibrate import load_calibration
from bipline.model.devices import choose_device
from bipline.model.opening import open_checkpoint
from bipline.settings.line import CompensateSettings, ComputeSettings
from bipline.settings.sweep import ComparisonSettings
from bipline.stages.calibrate import DEFAULT_SAMPLES, calibrate
from bipline.stages.stage import Context
from bipline.storage.store import Handle, Store
from bipline.values.combination import Combination
from bipline.values.comparison import Comparison, Outcome, Row
from bipline.values.record import EvaluationRecord
from bipline.values.resolution import Resolution, ResolvedText


def compare(
    settings: ComparisonSettings, inputs: Inputs, out: Path, jobs: int = 1, keep: bool = False
) -> Comparison:
    """Measure every combination of a grid; ``out`` keeps what is finished, and models if asked.

    Raises InvalidInput before any work where the grid or the inputs can be seen to fail, or when
    another process works in ``out``; EnvironmentFailure when a worker or the disk fails.
    """
    rows = combinations(settings, list(inputs.models), list(inputs.calibrations))
    if jobs < 1:
        raise InvalidInput(f"jobs {jobs}: must be at least 1")
    if jobs > 1 and choose_device(settings.compute.device).type != "cpu":
        raise InvalidInput(f"jobs {jobs}: several processes run on the CPU only; give --device cpu")
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
        processes, memory = processes_for(jobs, need, settings.compute.max_memory)
        with performing(processes) as perform:
            for work in works:
                work.compute = settings.compute.model_copy(update={"max_memory": memory})
                work.run(perform)
    return Comparison(
        models={work.name: compared_model(work.given.model, work.dense) for work in works},
        calibrations={
            name: compared_calibration([text], settings.calibrate)
            for name, text in inputs.calibrations.items()
        },
        rows=tuple(row for work in works for row in work.finished),
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
        for name, seed in dict.fromkeys((row.calibration, row.seed) for row in self.rows):
            drawn = section.model_copy(update={"texts": {name: 1.0}})
            self.windows[name, seed] = calibrate(
                Context(self.store, self.compute, seed), given.model, calibrations, drawn,
                CompensateSettings(), given.texts.values(),
            )  # fmt: skip
        sizes = section.samples or DEFAULT_SAMPLES, section.seqlen
        for row in self.rows:
            if reason := refusal_of(checkpoint, row, sizes, self.compute.max_memory):
                self.outcomes[row.unnamed.digest] = Outcome(refusal=reason)
        windows = [
            load_calibration(self.store.open(handle)).token_ids for handle in self.windows.values()
        ]
        texts = list(given.texts.values())
        return check_windows(checkpoint, texts, self.settings, self._pending, windows)

    def run(self, perform: Perform) -> None:
        """Dense record, statistics and rows, as far as they are not finished."""
        heading(self.name)
        protocol = self.settings.evaluate.protocol
        [(_, record)] = perform([DenseTask(**self._task, given=self.given, protocol=protocol)])
        self.dense = EvaluationRecord.model_validate_json(record)
        tasks = [
            ScoreTask(**self._task, given=self.given, calibration=handle, family=family)
            for place, handle in self.windows.items()
            for family in families(
                row for row in self._pending if (row.calibration, row.seed) == place
            )
        ]
        for task, answer in perform(tasks):
            for row, found in zip(task.family, json.loads(answer), strict=True):
                self.statistics[_scoring(row)] = Handle.model_validate(found)
        self._measure(perform)

    @property
    def finished(self) -> list[Row]:
        """All rows in the order of the grid."""
        found = []
        for row in self.rows:
            place = self._directory(row)
            shown = place.relative_to(self.out).as_posix() if place and self.out else None
            found.append(Row.of(row, self.outcomes[row.unnamed.digest], shown))
        return found

    @property
    def _pending(self) -> list[Combination]:
        return [row for row in self.rows if row.unnamed.digest not in self.outcomes]

    def _measure(self, perform: Perform) -> None:
        # What auto stands for may be in the grid by its own names too: it is measured once.
        once = {row.unnamed.digest: row for row in self._pending}
        tasks = [self._row_task(row) for row in once.values()]
        known = [task for task in tasks if task.finished()]
        for task in known:
            self._take(task, task.perform())
        if known:
            note(f"{len(known)} rows were finished before")
        start, total = time.perf_counter(), len(tasks) - len(known)
        if not total:
            return
        with ticking(f"rows of {self.name}", total) as tick:
            new = [task for task in tasks if task not in known]
            for done, (task, answer) in enumerate(perform(new), start=1):
                tick()
                told = _told(task.row.combination, self._take(task, answer))
                left = (time.perf_counter() - start) / done * (total - done)
                note(f"row {done} of {total}: {told}{_left(left)}")

    def _take(self, task: RowTask, answer: str) -> Outcome:
        outcome = Outcome.model_validate_json(answer)
        self.outcomes[task.row.combination.unnamed.digest] = outcome
        return outcome

    def _row_task(self, row: Combination) -> RowTask:
        inputs = RowInputs(
            given=self.given,
            calibration=self.windows[row.calibration, row.seed],
            statistics=self.statistics[_scoring(row)],
            combination=row,
            dense=self.dense,
            protocol=self.settings.evaluate.protocol,
        )
        return RowTask(**self._task, row=inputs, keep=self._directory(row))

    @property
    def _task(self) -> dict[str, Any]:
        """What every task is told."""
        return {"store": self.store.location, "compute": self.compute}

    def _directory(self, row: Combination) -> Path | None:
        """Where a kept model goes: a name to read, and a digest to tell alike ones apart."""
        if self.out is None:
            return None
        # By its own names: what auto stands for is the same model, and kept once.
        words = f"{row.model} {row.unnamed.label}"
        name = re.sub(r"[^A-Za-z0-9.]+", "-", words).strip("-.")
        return self.out / MODELS / f"{name}-{row.unnamed.digest[:8]}"


def _scoring(row: Combination) -> tuple[str, int, str]:
    """What rows with the same statistics have in common."""
    return row.calibration, row.seed, row.criterion.label


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
