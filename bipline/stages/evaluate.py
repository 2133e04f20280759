"""Evaluate: the dense model and what became of it, under one protocol."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from bipline.base.errors import InvalidInput, Refused
from bipline.base.progress import heading
from bipline.model.checkpoint import Checkpoint
from bipline.model.devices import choose_device
from bipline.model.opening import open_checkpoint
from bipline.model.tokenizer import tokenizer_of
from bipline.quality import evaluate as core
from bipline.quality.zero_shot import check_tasks, model_questions
from bipline.settings.compress import CompressSettings
from bipline.settings.line import ComputeSettings
from bipline.settings.protocol import Protocol
from bipline.stages import speed
from bipline.stages.resolve import glance, local_copy, resolve_tasks, resolve_texts
from bipline.stages.speed import with_speeds
from bipline.stages.stage import Context, Lines, Stage
from bipline.storage.store import Handle
from bipline.values.record import EvaluationRecord
from bipline.values.resolution import Resolution

STAGE = Stage("evaluate", "evaluation", ("bipline.quality.evaluate",))
BASELINE = "baseline"


def evaluate_dense(context: Context, given: Resolution, protocol: Protocol) -> EvaluationRecord:
    """Measure the model that everything is compared with, on all texts and tasks of ``given``.

    Raises Refused where its weights changed since it was resolved.
    """
    model = given.model
    inputs = {"model": model.identity, "tokenizer": model.tokenizer_digest}

    def place() -> Path | str:
        whole = bool(given.tasks) or protocol.speed  # as the core asks of every model
        return local_copy(model, context.downloads) if whole else model.location

    return _stored(
        context, given, protocol, inputs, place, "evaluate_dense", expected=model.tensor_digest
    )


def evaluate(
    context: Context, subject: Handle, given: Resolution, protocol: Protocol, name: str = "pruned"
) -> EvaluationRecord:
    """Measure a pruned or recovered model; ``name`` says which, for those who watch."""
    inputs, title = {"model": subject.content}, f"evaluate_{name}"
    return _stored(context, given, protocol, inputs, lambda: context.store.open(subject), title)


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


def _stored(
    context: Context,
    given: Resolution,
    protocol: Protocol,
    inputs: dict[str, str],
    place: Callable[[], Path | str],
    title: str,
    expected: str | None = None,
) -> EvaluationRecord:
    """The record of the model at ``place`` on the files of ``given``, found or measured."""
    files = {f"text {name}": text.sha256 for name, text in given.texts.items()}
    files |= {f"task {name}": task.sha256 for name, task in given.tasks.items()}

    def measure(work: Path) -> EvaluationRecord:
        texts = {name: Path(text.location) for name, text in given.texts.items()}
        tasks = {name: Path(task.location) for name, task in given.tasks.items()}
        running = core.Running(context.device, context.compute.max_memory)
        # Speed is measured by a stage of its own, where models take turns.
        record = core.evaluate(place(), protocol, texts, tasks, running, with_speed=False)
        if expected not in (None, record.tensor_digest):
            raise Refused(f"{given.model.location}: its weights changed while the run was going on")
        return record

    computing = {"device": context.device.type}
    key = STAGE.key({**inputs, **files}, protocol.model_dump(mode="json"), computing)
    return STAGE.value(context, key, EvaluationRecord, measure, title)


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
    named = f"protocol {section.protocol.name}: " if section.protocol.name else ""
    told = ", ".join(section.texts) or "nothing", ", ".join(section.tasks) or "none"
    return [("evaluate", f"{named}perplexity on {told[0]}; tasks: {told[1]}")]
