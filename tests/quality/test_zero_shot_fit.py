"""Rows that are longer than the model's window, and models that are larger than memory."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bipline.base.errors import InvalidInput
from bipline.base.progress import listening
from bipline.model.block_loop import BlockLoop
from bipline.model.opening import open_checkpoint
from bipline.model.tokenizer import load_tokenizer
from bipline.quality import zero_shot_streamed
from bipline.quality.evaluate import Running, evaluate
from bipline.quality.zero_shot_streamed import streamed_answers
from bipline.quality.zero_shot_tokens import Encoded
from bipline.settings.protocol import Protocol
from tests.quality.asking import measured, questions_of, written

WINDOW = 512
GENERATED = {"question": "What is two and two?", "answer": "It is four. #### 4"}


class Told:
    """A listener that keeps the notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def begin(self, description: str, total: int | None) -> None: ...

    def advance(self) -> None: ...

    def end(self) -> None: ...

    def heading(self, text: str) -> None: ...

    def note(self, text: str) -> None:
        self.notes.append(text)


def of_tokens(model: Path, count: int) -> dict[str, Any]:
    """A row whose longer choice makes ``count`` tokens with its query, the first of them BOS."""
    tokenizer = load_tokenizer(model)
    query, choices = "the" + " the" * (count - 3), ["a", "the"]
    assert len(tokenizer(f"{query} the")["input_ids"]) == count
    return {"query": query, "choices": choices, "gold": 1}


@pytest.fixture(scope="module")
def rows(reference: Path) -> list[dict[str, Any]]:
    """Forty rows, of which the second fits to the token and the third has one too many."""
    short = {"query": "the sea is", "choices": ["blue", "never"], "gold": 0}
    fits, over = of_tokens(reference, WINDOW + 1), of_tokens(reference, WINDOW + 2)
    return [short, fits, over, *[short] * 37]


def test_a_row_that_does_not_fit_is_counted_and_named(
    reference: Path, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    told = Told()
    with listening(told):
        result, items = measured(reference, {"t": written(tmp_path / "t.jsonl", rows)})["t"]
    assert (result.n, result.excluded, result.excluded_rows) == (39, 1, (2,))
    assert [item.row for item in items] == [0, 1, *range(3, 40)]
    [note] = told.notes
    assert "1 of 40 rows (2.5%)" in note and "window of 512" in note and "rows 2)" in note
    fitting = written(tmp_path / "f.jsonl", [row for n, row in enumerate(rows) if n != 2])
    alone, _ = measured(reference, {"t": fitting})["t"]
    assert (alone.acc, alone.stderr, alone.excluded_rows) == (result.acc, result.stderr, None)


def test_a_choice_longer_than_the_window_is_no_fault(reference: Path, tmp_path: Path) -> None:
    """lm-eval asserts that it is not."""
    long = {"query": "q", "choices": ["the " * 600, "b"], "gold": 0}
    rows = [{"query": "q", "choices": ["a", "b"], "gold": 0}, long]
    [result, _] = measured(reference, {"t": written(tmp_path / "t.jsonl", rows)}, max_excluded=0.5)[
        "t"
    ]
    assert result.excluded_rows == (1,)


@pytest.mark.parametrize(("most", "count"), [(0.02, 40), (0.0, 40), (1.0, 1)])
def test_too_many_that_do_not_fit_refuse_the_task_with_their_number(
    reference: Path, rows: list[dict[str, Any]], tmp_path: Path, most: float, count: int
) -> None:
    """And so does a task of which no row is left, whatever is allowed."""
    tasks = {"t": written(tmp_path / "t.jsonl", rows[2:3] if count == 1 else rows)}
    with pytest.raises(InvalidInput, match=rf"task t: 1 of {count} rows .* --max-excluded"):
        evaluate(reference, Protocol(max_excluded=most), {}, tasks)


TOKENS = st.lists(st.integers(3, 60), min_size=1, max_size=9)


@settings(max_examples=25, deadline=None)
@given(pairs=st.lists(st.tuples(TOKENS, TOKENS), min_size=1, max_size=9), room=st.integers(0, 4000))
def test_answers_are_those_of_each_question_alone(
    llama: Path, pairs: list[tuple[list[int], list[int]]], room: int
) -> None:
    """However they are sorted, padded, shared and divided: the log-probabilities of all logits."""
    loop = BlockLoop(open_checkpoint(llama), torch.float64)
    encoded: list[Encoded] = [(("", ""), context, more) for context, more in pairs]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zero_shot_streamed, "states_fit", lambda *_: True)
        need = zero_shot_streamed.memory_need
        least = need(loop, torch.empty(1, 1, device="meta"), logits=True)
        patch.setattr(zero_shot_streamed, "memory_need", lambda *_, **more: least)
        patch.setattr(zero_shot_streamed, "memory_limit", lambda _: least.least + room)
        found = streamed_answers(loop, encoded, None, "questions")
    for (context, more), (nats, greedy) in zip(pairs, found, strict=True):
        logits = loop.logits(torch.tensor([context + more]))[0, len(context) - 1 : -1]
        chosen = logits.log_softmax(-1).gather(1, torch.tensor(more)[:, None])
        assert nats == pytest.approx(float(chosen.sum()), abs=1e-9)
        assert greedy == (logits.argmax(-1).tolist() == more)


def limited(patch: pytest.MonkeyPatch, missing: int) -> None:
    """Make the room for a whole model less than the model by some bytes."""
    patch.setattr("bipline.quality.zero_shot.memory_limit", lambda _: 0)
    patch.setattr("bipline.quality.zero_shot.anonymous_memory", lambda: missing)


def test_a_model_larger_than_memory_is_run_block_by_block_and_it_is_said(
    reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"query": "the sea is", "choices": ["blue", "never seen"], "gold": 0}] * 3
    tasks, told = {"t": written(tmp_path / "t.jsonl", rows)}, Told()
    whole = evaluate(reference, Protocol(), {}, tasks).tasks["t"]
    limited(monkeypatch, 0)
    monkeypatch.setattr("bipline.quality.evaluate.load_model", None)
    with listening(told):
        streamed = evaluate(reference, Protocol(), {}, tasks, Running()).tasks["t"]
    assert streamed == whole
    assert re.search(r"block by block: the whole model takes [\d.]+ GB with a batch", told.notes[0])


def test_answers_that_are_written_need_the_whole_model(
    reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limited(monkeypatch, 0)
    tasks = {"gsm8k": written(tmp_path / "gsm8k.jsonl", [GENERATED])}
    with pytest.raises(InvalidInput, match=r"task gsm8k: .* run whole to write its answers"):
        evaluate(reference, Protocol(), {}, tasks)


@pytest.mark.slow
def test_answers_that_are_written_are_those_that_lm_eval_has(
    reference: Path, tmp_path: Path
) -> None:
    from benchmarks.zero_shot import by_lm_eval
    from bipline.model.loading import load_model

    rows = [GENERATED, {"question": "The sea.", "answer": "#### 0"}]
    result, items = measured(reference, {"gsm8k": written(tmp_path / "g.jsonl", rows)})["gsm8k"]
    model, tokenizer = load_model(reference, torch.float32), load_tokenizer(reference)
    metrics, samples = by_lm_eval(model, tokenizer, {"gsm8k": rows}, 16)["gsm8k"]
    assert result.acc == metrics["exact_match,strict-match"] and result.acc_norm is None
    first = [one for one in samples if one["filter"] == "strict-match"]
    assert [item.is_right for item in items] == [bool(one["exact_match"]) for one in first]


def test_a_window_too_short_to_write_an_answer_is_refused(
    data: Path, llama: Path, tmp_path: Path
) -> None:
    long = {**GENERATED, "question": "Why? " * 400}
    tasks = {"gsm8k": written(tmp_path / "gsm8k.jsonl", [long])}
    with pytest.raises(InvalidInput, match=r"task gsm8k: 1 of 1 rows"):
        questions_of(data / "models" / "stories260K", tasks)


REFUSED: dict[str, tuple[str, str]] = {
    "no such": ("no_such_task", "lm-eval has no task of this name"),
    "group": ("glue", "a group or tag by the names of its tasks"),
    "perplexity": ("wikitext", "give the text by --text"),
    "class": ("squadv2", "a class in Python"),
    "code": ("humaneval", "runs code"),
    "f1": ("coqa", "f1"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_accuracy_of_one_model_is_refused(
    case: str, tmp_path: Path, refusal_of: Callable[[str, Path], str]
) -> None:
    name, said = REFUSED[case]
    assert said in refusal_of(name, tmp_path)


@pytest.fixture
def refusal_of() -> Callable[[str, Path], str]:
    from bipline.quality.zero_shot_sources import resolve_task

    def refused(name: str, folder: Path) -> str:
        with pytest.raises(InvalidInput) as refusal:
            resolve_task(name, "hf:", folder)
        assert "\n" not in str(refusal.value)
        return str(refusal.value)

    return refused
