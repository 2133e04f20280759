"""Evaluate: the dense model and what became of it, under one protocol."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from bipline.base.errors import InvalidInput, Refused
from bipline.base.progress import heading
from bipline.model.checkpoint import Checkpoint
from bipline.model.devices import choose_device
from bipline.model.opening import open_checkpoint
from bipline.model.tokenizer import tokenizer_of
from bipline.quality import evaluate as core
from bipline.quality.zero_shot import check_tasks, model_questions
from bipline.settings.compress import CompressSettings, EvaluateSettings
from bipline.settings.line import ComputeSettings
from bipline.settings.protocol import Protocol
from bipline.stages import speed
from bipline.stages.resolve import glance, local_copy, resolve_tasks, resolve_texts
from bipline.stages.speed import with_speeds
from bipline.stages.stage import Context, Lines, Stage
from bipline.storage.store import Handle
from bipline.values.partial_evaluation import Part, PartialEvaluation
from bipline.values.record import EvaluationRecord
from bipline.values.resolution import Resolution

STAGE = Stage("evaluate", "evaluation", ("bipline.quality.evaluate",))
PART = Stage("evaluate_part", "partial evaluation", STAGE.modules)
BASELINE = "baseline"
Measured = TypeVar("Measured", EvaluationRecord, PartialEvaluation)


@dataclass(frozen=True)
class Subject:
    """A model that is measured: what its record is keyed by, and where it lies.

    ``name`` says which it is, for those who watch; ``expected`` is what its weights must be.
    """

    context: Context
    inputs: dict[str, str]
    name: str
    local: Callable[[], Path | str]
    outline: Callable[[], Path | str]
    expected: str | None = None

    def measure(self, given: Resolution, protocol: Protocol) -> EvaluationRecord:
        """The record on the files of ``given``, found or measured."""

        def measured(work: Path) -> EvaluationRecord:
            # Speed is measured by a stage of its own, where models take turns.
            record = core.evaluate(
                self.local(), protocol, *_files(given), self._running, with_speed=False
            )
            return self._unchanged(record)

        return self._stored(STAGE, given, protocol, EvaluationRecord, measured)

    def measure_part(self, given: Resolution, protocol: Protocol, part: Part) -> PartialEvaluation:
        """A part of it: some of the texts, and some of the tasks' batches."""

        def measured(work: Path) -> PartialEvaluation:
            asked = core.measuring(self.local(), protocol, *_files(given))
            return self._unchanged(asked.part(self._running, part))

        return self._stored(PART, given, protocol, PartialEvaluation, measured, part)

    def join(
        self, given: Resolution, protocol: Protocol, parts: Sequence[PartialEvaluation]
    ) -> EvaluationRecord:
        """The record of all parts: the bits, and the key, of one that was measured at once."""

        def joined(work: Path) -> EvaluationRecord:
            return core.measuring(self.outline(), protocol, *_files(given)).record(parts)

        return self._stored(STAGE, given, protocol, EvaluationRecord, joined)

    @property
    def _running(self) -> core.Running:
        return core.Running(self.context.device, self.context.compute.max_memory)

    def _unchanged(self, measured: Measured) -> Measured:
        if self.expected not in (None, measured.tensor_digest):
            place = self.outline()
            raise Refused(f"{place}: its weights changed while the run was going on")
        return measured

    def _stored(
        self,
        stage: Stage,
        given: Resolution,
        protocol: Protocol,
        kind: type[Measured],
        produce: Callable[[Path], Measured],
        part: Part | None = None,
    ) -> Measured:
        files = {f"text {name}": text.sha256 for name, text in given.texts.items()}
        files |= {f"task {name}": task.sha256 for name, task in given.tasks.items()}
        share = {"part": "{} of {}".format(*part)} if part else {}
        computing = {"device": self.context.device.type}
        inputs = {**self.inputs, **files, **share}
        key = stage.key(inputs, protocol.model_dump(mode="json"), computing)
        title = f"evaluate_{self.name}" + (f"_part_{part[0] + 1}" if part else "")
        return stage.value(self.context, key, kind, produce, title)


def dense_subject(context: Context, given: Resolution, protocol: Protocol) -> Subject:
    """The model that everything is compared with.

    Measuring it raises Refused where its weights changed since it was resolved.
    """
    model = given.model
    whole = bool(given.tasks) or protocol.speed  # as the core asks of every model

    def local() -> Path | str:
        return local_copy(model, context.downloads) if whole else model.location

    return Subject(
        context,
        {"model": model.identity, "tokenizer": model.tokenizer_digest},
        "dense",
        local,
        lambda: model.location,
        model.tensor_digest,
    )


def made_subject(context: Context, handle: Handle, name: str = "pruned") -> Subject:
    """A pruned or recovered model."""
    store = context.store
    return Subject(
        context,
        {"model": handle.content},
        name,
        lambda: store.open(handle),
        lambda: store.folder(handle).location,
    )


def evaluate_dense(context: Context, given: Resolution, protocol: Protocol) -> EvaluationRecord:
    """Measure the dense model on all texts and tasks of ``given``."""
    return dense_subject(context, given, protocol).measure(given, protocol)


def evaluate(
    context: Context, subject: Handle, given: Resolution, protocol: Protocol, name: str = "pruned"
) -> EvaluationRecord:
    """Measure a pruned or recovered model; ``name`` says which, for those who watch."""
    return made_subject(context, subject, name).measure(given, protocol)


def evaluate_models(
    models: Mapping[str, str],
    texts: Mapping[str, str],
    tasks: Mapping[str, str],
    protocol: Protocol,
    compute: ComputeSettings,
    downloads: Path,
    allow_fitted: bool = False,
) -> dict[str, EvaluationRecord]:
    """Records of models by name, kept nowhere; models, texts and tasks are given by their sources.

    An unusable one is found before the first is measured.
    """
    running = core.Running(choose_device(compute.device), compute.max_memory)
    places = {name: glance(source, downloads).location for name, source in models.items()}
    files = {name: Path(t.location) for name, t in resolve_texts(texts, downloads).items()}
    found = resolve_tasks(tasks, downloads, protocol.num_fewshot)
    rows = {name: Path(task.location) for name, task in found.items()}
    records = {}
    for name, place in places.items():
        heading(f"evaluate {name}: {models[name]}")
        records[name] = core.evaluate(place, protocol, files, rows, running, allow_fitted, False)
    if not protocol.speed:
        return records
    # The baseline first: against it the other is told.
    order = sorted(places, key=lambda name: name != BASELINE)
    opened = {name: open_checkpoint(places[name]) for name in order}
    return with_speeds(records, speed.measured(opened, protocol, running.device))


def _files(given: Resolution) -> tuple[dict[str, Path], dict[str, Path]]:
    """Where texts and tasks lie, by name."""
    texts = {name: Path(text.location) for name, text in given.texts.items()}
    return texts, {name: Path(task.location) for name, task in given.tasks.items()}


def check(settings: CompressSettings, checkpoint: Checkpoint | None, thorough: bool) -> Lines:
    """What is measured on every model.

    Raises InvalidInput where there is nothing to measure, or a text or task cannot be.
    """
    section = settings.evaluate
    if not (section.texts or section.tasks or section.protocol.speed):
        raise InvalidInput("nothing to measure: give a text, a task, or ask for speed")
    rows = {name: Path(settings.tasks[name]) for name in section.tasks}
    if thorough and checkpoint and rows:
        model_questions(checkpoint, tokenizer_of(checkpoint.folder), rows, section.protocol)
    else:
        check_tasks(rows)
    places = [settings.texts[name] for name in section.texts]
    if thorough and checkpoint and not any(place.startswith("hf:") for place in places):
        texts = {name: Path(settings.texts[name]) for name in section.texts}
        core.check_texts(checkpoint, section.protocol, texts)
    check_parts(section)
    named = f"protocol {section.protocol.name}: " if section.protocol.name else ""
    told = ", ".join(section.texts) or "nothing", ", ".join(section.tasks) or "none"
    shared = f", in {section.parts} parallel steps each" if section.parts > 1 else ""
    return [("evaluate", f"{named}perplexity on {told[0]}; tasks: {told[1]}{shared}")]


def check_parts(section: EvaluateSettings) -> None:
    """Raise InvalidInput where there is less to measure than there are parallel steps."""
    count = len(section.texts)
    if section.parts > 1 and not section.tasks and section.parts > count:
        raise InvalidInput(
            f"evaluate.parts {section.parts}: {count} texts and no task are measured, and a text "
            "is measured whole; give no more parts than texts"
        )
