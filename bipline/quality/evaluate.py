"""Evaluate: one model under one protocol gives one :class:`EvaluationRecord`.

Perplexity runs through the block loop, so a model larger than memory can be measured, and so do
zero-shot tasks where the model does not fit; speed needs the whole model in memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from bipline.base.errors import InvalidInput, Refused
from bipline.base.progress import note
from bipline.model.block_loop import BlockLoop
from bipline.model.checkpoint import Checkpoint
from bipline.model.devices import CPU, torch_dtype
from bipline.model.loading import load_model
from bipline.model.opening import open_checkpoint
from bipline.model.products import quick_float32
from bipline.model.tokenizer import tokenizer_of
from bipline.quality.perplexity import JOIN, measure_text, text_windows
from bipline.quality.speed import measure_speed
from bipline.quality.zero_shot import (
    ask,
    check_tasks,
    fits_in_memory,
    model_questions,
    results,
)
from bipline.quality.zero_shot_questions import Questions
from bipline.settings.protocol import Protocol
from bipline.storage.digests import digest_file
from bipline.storage.documents import read_documents, text_file
from bipline.storage.ngrams import MAXIMUM_OVERLAP
from bipline.storage.task_rows import task_digest
from bipline.values.fitted_text import fitted_in
from bipline.values.items import EvaluationItems
from bipline.values.partial_evaluation import WHOLE, Answers, Part, PartialEvaluation, joined
from bipline.values.plan import PLAN_NAME
from bipline.values.record import EvaluationRecord, Perplexity, environment
from bipline.values.speed import Speed


@dataclass(frozen=True)
class Running:
    """Where and in how much memory a model runs: it may change the last digits, not the protocol.

    ``max_memory`` in bytes; None is what the machine has free.
    """

    device: torch.device = CPU
    max_memory: int | None = None


def evaluate(
    model: Path | str,
    protocol: Protocol,
    texts: Mapping[str, Path],
    tasks: Mapping[str, Path],
    running: Running | None = None,
    allow_fitted: bool = False,
    with_speed: bool = True,
) -> EvaluationRecord:
    """Measure a model directory (``s3://`` for perplexity alone) on named texts and task files.

    Raises InvalidInput for an unusable model, text or task, when nothing is to be measured, and
    for a text that the model was fitted on unless ``allow_fitted``: then the record tells it. Speed
    that the protocol asks for is measured here unless models take turns elsewhere (``with_speed``).
    """
    if not (texts or tasks or protocol.speed):
        raise InvalidInput("nothing to measure: give a text, a task, or ask for speed")
    running, asked = running or Running(), measuring(model, protocol, texts, tasks)
    if protocol.speed:
        _ = asked.checkpoint.directory  # it needs the whole model, and it on this machine
    part, speeds = asked.part(running, allow_fitted=allow_fitted), dict[str, Speed]()
    if protocol.speed and with_speed:
        speeds = measure_speed({"model": asked.checkpoint}, protocol, running.device)
    return asked.record([part], speeds.get("model"))


def measuring(
    model: Path | str, protocol: Protocol, texts: Mapping[str, Path], tasks: Mapping[str, Path]
) -> Measuring:
    """A model and what is asked of it, looked at without a weight. Raises InvalidInput."""
    check_tasks(tasks)  # what is wrong must not be found after the long part
    return Measuring(open_checkpoint(model), protocol, texts, tasks)


@dataclass(frozen=True)
class Measuring:
    """A model, and all that is asked of it under a protocol: what parallel parts share."""

    checkpoint: Checkpoint
    protocol: Protocol
    texts: Mapping[str, Path]
    tasks: Mapping[str, Path]

    @cached_property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        return tokenizer_of(self.checkpoint.folder)

    @cached_property
    def questions(self) -> dict[str, Questions]:
        """Of all tasks, whichever of them a part asks. Raises InvalidInput for an unusable one."""
        return model_questions(self.checkpoint, self.tokenizer, self.tasks, self.protocol)

    @quick_float32()
    def part(
        self, running: Running, part: Part = WHOLE, allow_fitted: bool = False
    ) -> PartialEvaluation:
        """Measure every so many-th text, and every so many-th batch of the tasks.

        Raises InvalidInput for a text that the model was fitted on unless ``allow_fitted``.
        """
        (index, count), checkpoint, protocol = part, self.checkpoint, self.protocol
        if self.tasks:
            _ = checkpoint.directory  # these need the whole model, and it on this machine
        texts = dict(islice(self.texts.items(), index, None, count))
        fitted = fitted_shares(checkpoint, texts, allow_fitted)
        questions = self.questions
        whole = fits_in_memory(checkpoint, questions, protocol, running.device, running.max_memory)
        found = measure_perplexity(checkpoint, self.tokenizer, protocol, texts, running)
        answers = self._answers(running, whole, part)
        return PartialEvaluation(
            tensor_digest=checkpoint.tensor_digest,
            perplexity={name: perplexity for name, (perplexity, _) in found.items()},
            windows={name: windows for name, (_, windows) in found.items()},
            answers=answers,
            fitted=fitted,
            environment=environment(running.device),
        )

    def _answers(self, running: Running, whole: bool, part: Part) -> Answers:
        if not self.questions:
            return Answers()
        dtype = torch_dtype(self.protocol.dtype)
        model: Any = (
            load_model(self.checkpoint, dtype).to(running.device)
            if whole
            else BlockLoop(self.checkpoint, dtype, running.device)
        )
        size, most = self.protocol.batch_size, running.max_memory
        return ask(model, self.tokenizer, self.questions, size, most, part)

    def record(
        self, parts: Sequence[PartialEvaluation], speed: Speed | None = None
    ) -> EvaluationRecord:
        """What all parts come to: the bits of a single one. Raises Refused for unlike weights."""
        if len({each.tensor_digest for each in parts}) > 1:
            place = self.checkpoint.location
            raise Refused(f"{place}: its weights changed while its parts were measured")
        all_parts, protocol = joined(parts), self.protocol
        measured = results(self.questions, all_parts.answers)
        shares = {name: all_parts.fitted[name] for name in self.texts if name in all_parts.fitted}
        fitted = {"fitted_text": shares} if shares else {}
        return EvaluationRecord(
            tensor_digest=all_parts.tensor_digest,
            parameters=self.checkpoint.parameters,
            file_bytes=self.checkpoint.weight_bytes,
            perplexity={name: all_parts.perplexity[name] for name in self.texts},
            tasks={name: result for name, (result, _) in measured.items()},
            items=EvaluationItems(
                windows={name: all_parts.windows[name] for name in self.texts},
                tasks={name: items for name, (_, items) in measured.items()},
            ),
            speed=speed,
            protocol=protocol.described(
                _digests(self.texts),
                {name: task_digest(path) for name, path in self.tasks.items()},
                {name: str(each.task.VERSION) for name, each in self.questions.items()},
            ),
            seed=protocol.fewshot_seed if self.tasks else None,
            stride=(protocol.stride or protocol.width) if self.texts else None,
            environment={**all_parts.environment, **fitted},
        )


def fitted_shares(
    checkpoint: Checkpoint,
    texts: Mapping[str, Path],
    allowed: bool = False,
    remedy: str = "measure on other text, or give --allow-fitted",
) -> dict[str, float]:
    """The share of 13-grams in common with what a model was fitted on, for texts where it is much.

    Raises InvalidInput for such a text where it is not ``allowed``.
    """
    known, place, shares = fitted_in(checkpoint.folder), checkpoint.location, {}
    if known is None and PLAN_NAME in checkpoint.folder.names():
        note(f"{place}: does not tell which text it was fitted on; measure on none of that")
    for name, path in texts.items() if known and known.hashes else ():
        share = known.overlap(read_documents(path)) if known else 0.0
        if share > MAXIMUM_OVERLAP:
            said = f"text {name} ({path}): {share:.1%} of its 13-grams are of text that {place} "
            said += "was fitted on"
            if not allowed:
                raise InvalidInput(f"{said}; {remedy}")
            note(said)
            shares[name] = round(share, 4)
    return shares


def check_texts(checkpoint: Checkpoint, protocol: Protocol, texts: Mapping[str, Path]) -> None:
    """Raise InvalidInput for a text that cannot be measured on, or windows that are too long."""
    loop, tokenizer = BlockLoop(checkpoint, torch_dtype(protocol.dtype)), None
    for name, path in texts.items():
        tokenizer = tokenizer or tokenizer_of(checkpoint.folder)
        loop.check(windows_of(tokenizer, protocol, name, path))


def windows_of(
    tokenizer: Any, protocol: Protocol, name: str, path: Path, max_memory: int | None = None
) -> torch.Tensor:
    """The windows of a text under a protocol. Raises as :func:`text_windows`."""
    join = protocol.join.get(name, JOIN)
    documents = read_documents(path)
    return text_windows(
        tokenizer, documents, protocol.seqlen, protocol.bos, max_memory, join, protocol.stride
    )


def measure_perplexity(
    checkpoint: Checkpoint,
    tokenizer: Any,
    protocol: Protocol,
    texts: Mapping[str, Path],
    running: Running,
) -> dict[str, tuple[Perplexity, tuple[float, ...]]]:
    """Perplexity on every text, and the mean nats of its windows, through the block loop."""
    if not texts:
        return {}
    loop = BlockLoop(checkpoint, torch_dtype(protocol.dtype), running.device)
    results = {}
    for name, path in texts.items():
        windows = windows_of(tokenizer, protocol, name, path, running.max_memory)
        results[name] = measure_text(loop, windows, name, running.max_memory, protocol.stride)
    return results


def _digests(files: Mapping[str, Path]) -> dict[str, str]:
    return {name: digest_file(text_file(path)) for name, path in files.items()}
