"""Zero-shot accuracy by lm-eval: its prompts, requests and metrics, on rows or data sets at hand.

A task is a place (:mod:`.zero_shot_tasks`); its questions are looked at row by row before a model
is loaded (:mod:`.zero_shot_questions`). A model that fits is run by lm-eval's own model class, a
larger one by the block loop (:mod:`.zero_shot_streamed`); metrics are lm-eval's either way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count, islice
from pathlib import Path
from statistics import stdev
from typing import Any

import numpy
import torch

from bipline.base.errors import InvalidInput
from bipline.base.extras import check, require
from bipline.base.machine import anonymous_memory
from bipline.base.progress import note, ticking
from bipline.model.block_loop import BlockLoop
from bipline.model.built import longest_window, transformers_config
from bipline.model.checkpoint import Checkpoint
from bipline.model.devices import torch_dtype
from bipline.model.memory import ROOM_BYTES, gigabytes, memory_limit
from bipline.quality.zero_shot_questions import Questions, right_answers, task_questions
from bipline.quality.zero_shot_streamed import share_of, streamed_answers, streamed_batch
from bipline.quality.zero_shot_tasks import accuracy_of, are_rows, task_of
from bipline.quality.zero_shot_tokens import Asked
from bipline.settings.protocol import Protocol
from bipline.storage.task_rows import read_task_rows
from bipline.values.items import TaskItem
from bipline.values.partial_evaluation import WHOLE, Answer, Answers, Part
from bipline.values.record import TaskResult

Measured = tuple[TaskResult, tuple[TaskItem, ...]]


def zero_shot(
    model: Any,
    tokenizer: Any,
    questions: Mapping[str, Questions],
    batch_size: int,
    max_memory: int | None = None,
) -> dict[str, Measured]:
    """Ask a model every question: a result of each task, and what each of its rows gave.

    As :func:`ask` and :func:`results`.
    """
    return results(questions, ask(model, tokenizer, questions, batch_size, max_memory))


def ask(
    model: Any,
    tokenizer: Any,
    questions: Mapping[str, Questions],
    batch_size: int,
    max_memory: int | None = None,
    part: Part = WHOLE,
) -> Answers:
    """Ask a model a part's questions: its share of the batches, and of tasks that are written.

    ``model`` is transformers' in memory, or a block loop, which takes ``max_memory`` bytes. Raises
    InvalidInput or EnvironmentFailure where that is not enough.
    """
    written = [each for each in questions.values() if each.is_generated][part[0] :: part[1]]
    encoded = [e for each in questions.values() for rows in each.encoded.values() for e in rows]
    streamed = isinstance(model, BlockLoop)
    size_of = streamed_batch(model) if streamed else lambda _: batch_size
    numbers = share_of(encoded, part, size_of)
    if not (numbers or written):
        return Answers()
    asked = [encoded[number] for number in numbers]
    what = f"zero-shot batches of {', '.join(questions)}"
    if streamed:
        return Answers(chosen=_numbered(numbers, streamed_answers(model, asked, max_memory, what)))
    harness, texts = _harness(model, tokenizer, batch_size), {}
    with ticking(what, None) as tick:
        _count_calls(harness, tick)
        found = harness._loglikelihood_tokens(asked, disable_tqdm=True)
        for each in written:
            texts[each.name] = tuple(harness.generate_until(list(_repeated(each))))
    return Answers(chosen=_numbered(numbers, found), written=texts)


def results(questions: Mapping[str, Questions], answers: Answers) -> dict[str, Measured]:
    """What answers to all questions come to: a result of each task, and what each row gave."""
    numbers = count()
    for each in questions.values():
        if each.is_generated:
            asked, found = list(_repeated(each)), list[Any](answers.written[each.name])
        else:
            asked = [r for requests in each.requests.values() for r in requests]
            found = [answers.chosen[number] for number in islice(numbers, len(asked))]
        for request, answer in zip(asked, found, strict=True):
            request.resps.append(answer)
    return {name: _measured(each) for name, each in questions.items()}


def _numbered(numbers: Sequence[int], answers: Sequence[Answer]) -> dict[int, Answer]:
    return dict(zip(numbers, answers, strict=True))


def _repeated(questions: Questions) -> Iterator[Any]:
    """The requests of a task, as often as each is asked."""
    for requests in questions.requests.values():
        for request in requests:
            yield from [request] * request.repeats


def model_questions(
    checkpoint: Checkpoint, tokenizer: Any, tasks: Mapping[str, Path], protocol: Protocol
) -> dict[str, Questions]:
    """The questions of tasks for a model; none of it is loaded.

    Raises InvalidInput as :func:`.zero_shot_questions.task_questions`.
    """
    if not tasks:
        return {}
    window = longest_window(transformers_config(checkpoint.config))
    asked = Asked(tokenizer, checkpoint.shape.vocab_size, window)
    return task_questions(tasks, asked, protocol)


def check_tasks(tasks: Mapping[str, Path]) -> None:
    """Look at every task without a model.

    Raises InvalidInput with the line that cannot be measured, and without the extra ``eval``.
    """
    for name, path in tasks.items():
        check("eval", f"task {name}")
        if are_rows(name, path):
            read_task_rows(path)
        else:
            task_of(name, path)


def fits_in_memory(
    checkpoint: Checkpoint,
    questions: Mapping[str, Questions],
    protocol: Protocol,
    device: torch.device,
    max_memory: int | None,
) -> bool:
    """Whether the whole model and its largest batch fit; where not, it is said how it is run.

    Raises InvalidInput where it does not and a task has the model write its answers.
    """
    if not questions:
        return True
    size, shape = torch_dtype(protocol.dtype).itemsize, checkpoint.shape
    tokens = protocol.batch_size * max(each.longest for each in questions.values())
    # lm-eval holds a batch's logits beside their logarithms, at the length of the longest.
    batch = tokens * (shape.vocab_size + 4 * shape.hidden_size + 3 * shape.intermediate_size)
    batch *= size + 4
    need = checkpoint.parameters * size + batch
    room = memory_limit(max_memory) - anonymous_memory() - ROOM_BYTES
    if device.type == "cuda":
        room = min(room + batch, torch.cuda.mem_get_info(device)[0])
    if need <= room:
        return True
    said = (
        f"the whole model takes {gigabytes(need)} with a batch, {gigabytes(max(room, 0))} are free"
    )
    for name, each in questions.items():
        if each.is_generated:
            reason = "and a model is run whole to write its answers; give more --max-memory"
            raise InvalidInput(f"task {name}: {said}, {reason}")
    note(f"tasks run block by block: {said}")
    return False


def _harness(model: Any, tokenizer: Any, batch_size: int) -> Any:
    """lm-eval's class of a model in memory."""
    return require("lm_eval.models.huggingface", "eval").HFLM(
        pretrained=model,
        tokenizer=tokenizer,
        batch_size=batch_size,
        max_length=longest_window(model.config),
        device=str(model.device),
    )


def _count_calls(harness: Any, tick: Callable[[], None]) -> None:
    call = harness._model_call

    def counted(*arguments: Any, **more: Any) -> Any:
        tick()
        return call(*arguments, **more)

    harness._model_call = counted


def _measured(questions: Questions) -> Measured:
    """lm-eval's metrics of the answers, by row and altogether."""
    task = questions.task
    task._instances = [r for requests in questions.requests.values() for r in requests]
    task.apply_filters()
    metrics, items = [], []
    for row, requests in questions.requests.items():
        # Where answers are read in several ways, the first is the one that lm-eval lists first.
        answers = [next(iter(request.filtered_resps.values())) for request in requests]
        metrics.append(task.process_results(requests[0].doc, answers))
        items.append(_item(task, row, requests[0].doc, answers, metrics[-1]))
    return _task_result(task, metrics, tuple(questions.excluded)), tuple(items)


def _item(task: Any, row: int, document: Any, answers: list[Any], metrics: Any) -> TaskItem:
    """What a row gave. Where nothing is chosen, choice 1 is a right answer and 0 a wrong one."""
    if task.OUTPUT_TYPE != "multiple_choice":
        choice = int(bool(metrics[accuracy_of(metrics)]))
        nats = tuple(each[0] for each in answers if isinstance(each, tuple))
        return TaskItem(row=row, loglikelihoods=nats, gold=1, choice=choice)
    choices = task.doc_to_choice(document)
    nats = tuple(answer[0] for answer in answers[: len(choices)])
    right = right_answers(task, document, choices)
    places = {"choice": int(numpy.argmax(nats))}
    if "acc_norm" in metrics:
        # By character and not by byte, as lm-eval does.
        lengths = numpy.array([float(len(choice)) for choice in choices])
        places["choice_norm"] = int(numpy.argmax(numpy.array(nats) / lengths))
    chosen = [place for place in places.values() if place in right]
    return TaskItem(row=row, loglikelihoods=nats, gold=(chosen or right)[0], **places)


def _task_result(task: Any, metrics: list[Any], excluded: tuple[int, ...]) -> TaskResult:
    accuracy = accuracy_of(metrics[0])
    acc, stderr = _mean(task, metrics, accuracy)
    has_norm = "acc_norm" in metrics[0]
    norm, norm_stderr = _mean(task, metrics, "acc_norm") if has_norm else (None, None)
    return TaskResult(
        acc=acc,
        acc_norm=norm,
        stderr=stderr,
        n=len(metrics),
        acc_norm_stderr=norm_stderr,
        excluded=len(excluded),
        excluded_rows=excluded or None,
    )


def _mean(task: Any, metrics: list[Any], name: str | None) -> tuple[float, float | None]:
    """A metric as lm-eval gives it, and its standard error: of zeros and ones the binomial."""
    values = [float(each[name]) for each in metrics]
    share, rows = float(task.aggregation()[name]([each[name] for each in metrics])), len(values)
    if rows == 1:
        return share, None
    if set(values) <= {0.0, 1.0}:
        return share, math.sqrt(share * (1 - share) / (rows - 1))
    return share, stdev(values) / math.sqrt(rows)
