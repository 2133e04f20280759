"""The engine of ``bipline compare``: every combination of a grid, and nothing twice.

Model by model: the dense record first, then statistics once for all that can share them, then the
rows. What is finished lies in the folder by its key, so a run that was killed, or one with a
larger grid, computes only what is missing, and the rows come out the same.
"""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from bipline.base.errors import InvalidInput
from bipline.base.progress import heading, note, ticking
from bipline.comparison.folder import MODELS, comparison_folder
from bipline.comparison.grid import combinations, refusal_of
from bipline.comparison.inputs import Inputs, check_windows
from bipline.comparison.pool import Perform, performing, processes_for, threads_for
from bipline.comparison.rows import RowInputs
from bipline.comparison.scoring import families
from bipline.comparison.tasks import DenseTask, RowTask, ScoreTask, Task
from bipline.compression.calibrate import load_calibration
from bipline.model.devices import choose_device
from bipline.model.opening import open_checkpoint
from bipline.settings.line import CalibrateSettings, CompensateSettings
from bipline.settings.sweep import ComparisonSettings
from bipline.stages.calibrate import DEFAULT_SAMPLES, calibrate
from bipline.stages.stage import Context
from bipline.storage.store import Handle, Store
from bipline.values.combination import Combination
from bipline.values.comparison import (
    ComparedCalibration,
    ComparedModel,
    Comparison,
    Outcome,
    Row,
)
from bipline.values.record import EvaluationRecord


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
                name, [row for row in rows if row.model == name], inputs, settings, store,
                out if keep else None,
            )
            for name in inputs.models
        ]  # fmt: skip
        need = max(work.checked() for work in works)
        processes, memory = processes_for(jobs, need, settings.compute.max_memory)
        with performing(processes) as perform:
            for work in works:
                work.run(perform, memory)
    return Comparison(
        models={work.name: work.compared for work in works},
        calibrations={
            name: ComparedCalibration(
                source=text.source,
                sha256=text.sha256,
                samples=settings.calibrate.samples or DEFAULT_SAMPLES,
                seqlen=settings.calibrate.seqlen,
            )
            for name, text in inputs.calibrations.items()
        },
        rows=tuple(row for work in works for row in work.finished),
    )


@dataclass
class _Model:
    """One model's part of a comparison, and how far it has come.

    ``windows`` and ``statistics`` are by calibration text and seed, statistics by criterion too;
    ``outcomes`` by the combination's digest. ``out`` is where models are kept, or None.
    """

    name: str
    rows: list[Combination]
    inputs: Inputs
    settings: ComparisonSettings
    store: Store
    out: Path | None
    max_memory: int | None = None
    dense: EvaluationRecord | None = None
    windows: dict[tuple[str, int], Handle] = field(default_factory=dict)
    statistics: dict[tuple[str, int, str], Handle | str] = field(default_factory=dict)
    outcomes: dict[str, Outcome] = field(default_factory=dict)

    def checked(self) -> int:
        """Look at all that can be seen without computing; bytes one process needs at most.

        Refused combinations are told apart here, and need no statistics.
        """
        given, compute = self.inputs.models[self.name], self.settings.compute
        checkpoint = open_checkpoint(given.model.location, given.model.tensor_digest)
        section = self.settings.calibrate
        samples = section.samples or DEFAULT_SAMPLES
        for row in self.rows:
            place = row.calibration, row.seed
            if place not in self.windows:
                self.windows[place] = self._drawn(*place, samples)
        sizes = samples, section.seqlen
        for row in self.rows:
            if reason := refusal_of(checkpoint, row, sizes, compute.max_memory):
                self.outcomes[row.unnamed.digest] = Outcome(refusal=reason)
        drawn = [
            load_calibration(self.store.open(handle)).token_ids for handle in self.windows.values()
        ]
        texts = list(given.texts.values())
        return check_windows(checkpoint, texts, self.settings, self._pending, drawn)

    def run(self, perform: Perform, max_memory: int | None) -> None:
        """Dense record, statistics and rows, as far as they are not finished."""
        heading(self.name)
        self.max_memory = max_memory
        given, protocol = self.inputs.models[self.name], self.settings.evaluate.protocol
        [(_, record)] = perform([DenseTask(**self._task, given=given, protocol=protocol)])
        self.dense = EvaluationRecord.model_validate_json(record)
        self._score(perform)
        self._measure(perform)

    @property
    def compared(self) -> ComparedModel:
        """What the comparison tells of the dense model."""
        model = self.inputs.models[self.name].model
        assert self.dense  # noqa: S101
        return ComparedModel(
            source=model.source, revision=model.revision, licence=model.licence, record=self.dense
        )

    @property
    def finished(self) -> list[Row]:
        """All rows in the order of the grid."""
        found = []
        for row in self.rows:
            place = self._directory(row)
            shown = place.relative_to(self.out).as_posix() if place and self.out else None
            found.append(Row.of(row, self.outcomes[row.unnamed.digest], shown))
        return found

    def _drawn(self, calibration: str, seed: int, samples: int) -> Handle:
        given = self.inputs.models[self.name]
        section = CalibrateSettings(
            texts={calibration: 1.0}, samples=samples, seqlen=self.settings.calibrate.seqlen
        )
        return calibrate(
            Context(self.store, self.settings.compute, seed), given.model,
            self.inputs.calibrations, section, CompensateSettings(), given.texts.values(),
        )  # fmt: skip

    @property
    def _pending(self) -> list[Combination]:
        return [row for row in self.rows if row.unnamed.digest not in self.outcomes]

    def _score(self, perform: Perform) -> None:
        """Statistics of every criterion; where they are refused, so are its rows."""
        tasks = [
            ScoreTask(
                **self._task, given=self.inputs.models[self.name], calibration=handle,
                family=family,
            )
            for place, handle in self.windows.items()
            for family in families(
                row for row in self._pending if (row.calibration, row.seed) == place
            )
        ]  # fmt: skip
        for task, answer in perform(tasks):
            first = cast("ScoreTask", task).family[0]
            for label, found in json.loads(answer).items():
                statistics = found if isinstance(found, str) else Handle.model_validate(found)
                self.statistics[first.calibration, first.seed, label] = statistics
        for row in self._pending:
            if isinstance(reason := self._statistics(row), str):
                self.outcomes[row.unnamed.digest] = Outcome(refusal=reason)

    def _measure(self, perform: Perform) -> None:
        # What auto stands for may be in the grid by its own names too: it is measured once.
        tasks = [
            self._row_task(row) for row in {r.unnamed.digest: r for r in self._pending}.values()
        ]
        if not tasks:
            return
        start, total = time.perf_counter(), len(tasks)
        with ticking(f"rows of {self.name}", total) as tick:
            for done, (task, answer) in enumerate(perform(tasks), start=1):
                tick()
                row = cast("RowTask", task).row.combination
                outcome = Outcome.model_validate_json(answer)
                self.outcomes[row.unnamed.digest] = outcome
                left = (time.perf_counter() - start) / done * (total - done)
                note(f"row {done} of {total}: {_told(row, outcome)}{_left(left)}")

    def _row_task(self, row: Combination) -> Task:
        keep, dense = self._directory(row), self.dense
        statistics = self._statistics(row)
        assert dense and isinstance(statistics, Handle)  # noqa: S101
        inputs = RowInputs(
            given=self.inputs.models[self.name],
            calibration=self.windows[row.calibration, row.seed],
            statistics=statistics,
            combination=row,
            dense=dense,
            protocol=self.settings.evaluate.protocol,
        )
        return RowTask(**self._task, row=inputs, keep=keep and str(keep))

    @property
    def _task(self) -> dict[str, Any]:
        """What every task is told."""
        compute = self.settings.compute.model_copy(update={"max_memory": self.max_memory})
        return {"store": self.store.location, "compute": compute}

    def _statistics(self, row: Combination) -> Handle | str:
        return self.statistics[row.calibration, row.seed, row.criterion.label]

    def _directory(self, row: Combination) -> Path | None:
        """Where a kept model goes: a name to read, and a digest to tell alike ones apart."""
        if self.out is None:
            return None
        # By its own names: what auto stands for is the same model, and kept once.
        words = f"{row.model} {row.unnamed.label}"
        name = re.sub(r"[^A-Za-z0-9.]+", "-", words).strip("-.")
        return self.out / MODELS / f"{name}-{row.unnamed.digest[:8]}"


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
