"""Questions of a task as a model is asked them: lm-eval's requests, their tokens, and which fit.

Everything that lm-eval asserts of a row while it measures is looked at here, before it does: a
prompt or a continuation of no token, an answer that is no choice, examples it does not have, and
what is longer than the model's window.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from bipline.base.errors import InvalidInput
from bipline.base.extras import require
from bipline.base.progress import note, track
from bipline.model.built import one_line
from bipline.quality.zero_shot_tasks import task_of
from bipline.quality.zero_shot_tokens import Asked, Encoded
from bipline.settings.protocol import Protocol

GENERATED = "generate_until"
# Tokens that lm-eval lets a model write where the task does not say.
MOST_GENERATED = 256
SHOWN_ROWS = 10
# Rows whose texts and ids are held beside each other while they are made.
ROWS_AT_ONCE = 256


@dataclass
class Questions:
    """A task's questions by row: lm-eval's requests and, but for generated answers, their tokens.

    Rows that are longer than the model's window stand in ``excluded`` alone.
    """

    name: str
    task: Any
    requests: dict[int, list[Any]] = field(default_factory=dict)
    encoded: dict[int, list[Encoded]] = field(default_factory=dict)
    excluded: list[int] = field(default_factory=list)

    @property
    def is_generated(self) -> bool:
        """Whether the model writes its answers."""
        return bool(self.task.OUTPUT_TYPE == GENERATED)

    @property
    def longest(self) -> int:
        """The most tokens that a model is given at once; 0 for generated answers."""
        pairs = [pair for pairs in self.encoded.values() for pair in pairs]
        return max((len(one) + len(other) - 1 for _, one, other in pairs), default=0)

    def ask(self, asked: Asked, limit: int | None) -> None:
        """Make the requests of the first ``limit`` rows (of all for None), and their tokens.

        Raises InvalidInput with the row that cannot be asked.
        """
        made = _requests(self.name, self.task, limit)
        while some := dict(islice(made, ROWS_AT_ONCE)):
            longest = (
                self._generated(asked, some) if self.is_generated else self._tokens(asked, some)
            )
            over = [row for row, length in longest.items() if length > asked.window]
            self.excluded += over
            self.requests |= {row: some[row] for row in some if row not in over}
            self.encoded = {row: self.encoded[row] for row in self.encoded if row not in over}

    def hold_to(self, most: float, window: int) -> None:
        """Say which rows are left out. Raises InvalidInput where they are more than ``most``."""
        out, count = len(self.excluded), len(self.excluded) + len(self.requests)
        if not out:
            return
        rows = ", ".join(map(str, self.excluded[:SHOWN_ROWS])) + ", ..." * (out > SHOWN_ROWS)
        said = f"task {self.name}: {out} of {count} rows ({out / count:.1%}) are longer than the "
        said += f"model's window of {window} tokens (rows {rows})"
        if out == count or out / count > most:
            raise InvalidInput(f"{said}; --max-excluded {most:g} allows no more than that share")
        note(f"{said}; they are left out")

    def _tokens(self, asked: Asked, some: dict[int, list[Any]]) -> dict[int, int]:
        """Give rows their tokens; the most that each has a model look at."""
        pairs = [request.args for requests in some.values() for request in requests]
        made = iter(asked.encoded(pairs))
        longest = {}
        for row, requests in some.items():
            self.encoded[row] = list(islice(made, len(requests)))
            asked.check(f"task {self.name}: row {row}", self.encoded[row])
            longest[row] = max(len(one) + len(other) - 1 for _, one, other in self.encoded[row])
        return longest

    def _generated(self, asked: Asked, some: dict[int, list[Any]]) -> dict[int, int]:
        """The most tokens of each row: its prompt's and those that the model may write."""
        texts = {row: requests[0].args[0] for row, requests in some.items()}
        normalize = require("lm_eval.models.utils", "eval").normalize_gen_kwargs
        [first, *_] = next(iter(some.values()))
        most = int(normalize(first.args[1], MOST_GENERATED)["max_gen_toks"])
        ids = asked.ids(texts.values())
        return {row: len(ids[text]) + most for row, text in texts.items()}


def task_questions(
    tasks: Mapping[str, Path], asked: Asked, protocol: Protocol
) -> dict[str, Questions]:
    """The questions of every task, of the first ``protocol.limit`` rows where it has a limit.

    Raises InvalidInput with the row that cannot be asked, for a tokenizer that fails on one or is
    of another model, and where more than ``protocol.max_excluded`` of the rows do not fit.
    """
    found = {}
    for name, path in track(tasks.items(), "tokens of the tasks", len(tasks)):
        asked.check_opening(name)
        task = task_of(name, path, protocol.num_fewshot, protocol.fewshot_seed)
        found[name] = questions = Questions(name, task)
        questions.ask(asked, protocol.limit)
        questions.hold_to(protocol.max_excluded, asked.window)
    return found


def _requests(name: str, task: Any, limit: int | None) -> Iterator[tuple[int, list[Any]]]:
    """lm-eval's requests row by row, as its ``build_all_requests`` makes them."""
    config = task.config
    for row, document in task.doc_iterator(limit=limit):
        try:
            context = task.fewshot_context(
                document, num_fewshot=config.num_fewshot, gen_prefix=task.doc_to_prefix(document)
            )
            made = task.construct_requests(
                doc=document, ctx=context, metadata=(name, row, config.repeats)
            )
            _check_answer(task, document)
        except Exception as error:  # assertions, templates and functions of thousands of tasks
            reason = f"lm-eval cannot make a question of it: {one_line(error)}"
            raise InvalidInput(f"task {name}: row {row}: {reason[:400]}") from error
        yield row, made if isinstance(made, list) else [made]


def _check_answer(task: Any, document: Any) -> None:
    """Raise ValueError where the answer is none of the choices: lm-eval would count it as wrong.

    A task with a metric of its own is asked for that of an answer that says nothing.
    """
    if task.OUTPUT_TYPE == GENERATED:
        task.process_results(document, [""])
    if task.OUTPUT_TYPE != "multiple_choice":
        return
    choices = task.doc_to_choice(document)
    if not all(choices):
        raise ValueError("one of its choices is empty")
    if not right_answers(task, document, choices):
        raise ValueError("its answer is none of its choices, which it must be to be measured")
    if callable(task.config.process_results):
        task.process_results(document, [(-1.0, False)] * len(choices))


def right_answers(task: Any, document: Any, choices: list[str]) -> list[int]:
    """The places of a row's right answers among its choices; empty where one is not among them."""
    gold = task.doc_to_text(document) if task.multiple_input else task.doc_to_target(document)
    given = gold if isinstance(gold, list) else [gold]
    places = [choices.index(one) if one in choices else one for one in given]
    known = [p for p in places if isinstance(p, int) and 0 <= p < len(choices)]
    return known if len(known) == len(given) else []
