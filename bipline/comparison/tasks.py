"""Tasks: what one process is told to do, as JSON. Results go into the store.

A task names its model and windows by place and digest, so it means the same in this process and
in another one.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from bipline.base.progress import silently
from bipline.comparison.grid import runs_windows
from bipline.comparison.measure import Evaluation, measure
from bipline.comparison.scoring import STAGE, Wanted, score_family
from bipline.compression.allocation.problem import Windows
from bipline.compression.calibrate import load_calibration
from bipline.compression.computing import Computing
from bipline.compression.corrections import KIND as CORRECTIONS
from bipline.compression.score import Calibration
from bipline.model.checkpoint import Checkpoint
from bipline.model.devices import choose_device, torch_dtype
from bipline.model.opening import open_checkpoint
from bipline.quality.evaluate import Running
from bipline.settings.protocol import Protocol
from bipline.storage.directory import write_text
from bipline.storage.store import LocalStore
from bipline.storage.work import work_directory
from bipline.values.combination import Choice, Combination
from bipline.values.comparison import Outcome
from bipline.values.record import EvaluationRecord

VALUE_NAME = "value.json"
# Where a row's model lies while it is measured, in the store.
PRUNED = "pruned"


class _Task(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Setting(_Task):
    """What all tasks of a comparison share; ``max_memory`` in bytes is each process's own."""

    store: str
    texts: dict[str, str]
    protocol: Protocol
    device: str
    micro_batch: int | None
    max_memory: int | None

    @property
    def kept(self) -> LocalStore:
        """The store that results go to."""
        return LocalStore(Path(self.store))

    @property
    def computing(self) -> Computing:
        """How windows are run."""
        device = choose_device(self.device)
        return Computing(torch_dtype(self.protocol.dtype), device, self.micro_batch)

    @property
    def evaluation(self) -> Evaluation:
        """How models are measured."""
        running = Running(choose_device(self.device), self.max_memory)
        texts = {name: Path(place) for name, place in self.texts.items()}
        return Evaluation(texts, self.protocol, running)


class Task(_Task):
    """Something to do with one model, told by its place and the digest of its tensors."""

    setting: Setting
    location: str
    tensor_digest: str

    def perform(self) -> str:
        """Do it; the answer as JSON text."""
        raise NotImplementedError

    def opened(self) -> Checkpoint:
        """The model, which is compared with its digest once it has been read."""
        return open_checkpoint(self.location, self.tensor_digest)

    def windows(self, key: str, checkpoint: Checkpoint) -> Windows:
        """The calibration windows of a key, and how they are run in the memory there is."""
        drawn = load_calibration(self.setting.kept.place("calibrate", key))
        fitting = self.setting.computing.within(
            self.setting.max_memory, checkpoint, drawn.token_ids
        )
        return Windows(drawn.token_ids, fitting, drawn.digest)


class DenseTask(Task):
    """Measure the dense model."""

    key: str

    def perform(self) -> str:
        """Write its record; the answer is empty."""
        store = self.setting.kept
        if store.find("dense", self.key) is None:
            record = self.setting.evaluation.record(Path(self.location))
            _write(store, "dense", self.key, record)
        return ""


class WantedCriterion(_Task):
    """One of a family's criteria (see :class:`.scoring.Wanted`)."""

    criterion: Choice
    seed: int
    key: str
    needed: bool


class ScoreTask(Task):
    """Take the statistics of criteria that can share sums."""

    calibration: str
    family: tuple[WantedCriterion, ...]

    def perform(self) -> str:
        """Write the statistics; the answer is the reasons of those refused, by key."""
        checkpoint = self.opened()
        windows = self.windows(self.calibration, checkpoint)
        family = [Wanted(w.criterion, w.seed, w.key, w.needed) for w in self.family]
        calibration = Calibration(windows.token_ids, windows.digest)
        store = self.setting.kept
        return json.dumps(score_family(checkpoint, calibration, family, windows.computing, store))


class RowTask(Task):
    """Measure one combination; ``directory`` is where its model goes, or nowhere.

    Its corrections go beside it.
    """

    key: str
    combination: Combination
    calibration: str
    statistics: str
    dense: str
    directory: str | None

    def perform(self) -> str:
        """Write the outcome; the answer is the outcome.

        A refusal is not kept: it costs little to find again, and it may have been the memory's.
        """
        store = self.setting.kept
        row = store.place("row", self.key)
        with silently(), work_directory(row.with_name(f"{row.name}.work")) as work:
            outcome = self._outcome(work)
            # Measured before, and now again for its model alone: the first figures and cost stay.
            known = read_outcome(store, self.key)
            # Inside, because the work directory goes when what it was for is stored.
            if outcome.measured and known is None:
                _write(store, "row", self.key, outcome)
        return (known or outcome).model_dump_json()

    def _outcome(self, work: Path) -> Outcome:
        store, checkpoint = self.setting.kept, self.opened()
        measures = runs_windows(self.combination)
        windows = self.windows(self.calibration, checkpoint) if measures else None
        place = store.place(PRUNED, self.key)
        shutil.rmtree(place, ignore_errors=True)
        try:
            outcome = measure(
                checkpoint, store.place(STAGE, self.statistics), self.combination, windows,
                self.setting.evaluation, read_record(store, self.dense), place, work,
            )  # fmt: skip
            if outcome.measured and self.directory:
                final = Path(self.directory)
                # First, because a model that has its name is finished.
                if self.combination.compensates:
                    _move(work / CORRECTIONS, final.with_name(f"{final.name}.{CORRECTIONS}"))
                _move(place, final)
        finally:
            shutil.rmtree(place, ignore_errors=True)
        return outcome


TASKS: dict[str, type[Task]] = {task.__name__: task for task in (DenseTask, ScoreTask, RowTask)}


def perform_text(kind: str, text: str) -> str:
    """Perform a task that came as its kind and JSON text."""
    return TASKS[kind].model_validate_json(text).perform()


def read_record(store: LocalStore, key: str) -> EvaluationRecord:
    """A dense model's record."""
    text = (store.place("dense", key) / VALUE_NAME).read_text(encoding="utf-8")
    return EvaluationRecord.model_validate_json(text)


def read_outcome(store: LocalStore, key: str) -> Outcome | None:
    """A finished row's outcome, or None. Raises Refused where its file was changed."""
    found = store.find("row", key)
    if found is None:
        return None
    text = (found.open() / VALUE_NAME).read_text(encoding="utf-8")
    return Outcome.model_validate_json(text)


def _write(store: LocalStore, stage: str, key: str, value: BaseModel) -> None:
    with store.write(stage, key, stage) as writer:
        write_text(writer.path / VALUE_NAME, value.model_dump_json(indent=1) + "\n")


def _move(place: Path, final: Path) -> None:
    """Give a measured model its own name; what an interrupted run had put there goes."""
    final.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(final, ignore_errors=True)
    place.rename(final)
