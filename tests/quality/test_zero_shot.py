"""Zero-shot tasks: lm-eval's answer equals a direct count, and the cloze task shows damage."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bipline.base.errors import InvalidInput
from bipline.model.loading import load_model
from bipline.model.tokenizer import load_tokenizer
from bipline.quality.zero_shot import check_tasks, zero_shot
from bipline.quality.zero_shot_questions import task_questions
from bipline.quality.zero_shot_tokens import Asked
from bipline.settings.protocol import Protocol
from tests.conftest import ASSETS
from tests.quality.asking import measured, questions_of, written

CLOZE = ASSETS / "tasks" / "cloze.jsonl"


@pytest.fixture(scope="module")
def few_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tasks") / "cloze.jsonl"
    path.write_text("".join(CLOZE.read_text().splitlines(keepends=True)[:24]))
    return path


def log_likelihood(model: object, tokenizer: object, context: str, continuation: str) -> float:
    """The direct definition: the sum of the continuation's token log-probabilities."""
    start = len(tokenizer(context)["input_ids"])  # type: ignore[operator]
    ids = torch.tensor([tokenizer(context + continuation)["input_ids"]])  # type: ignore[operator]
    with torch.no_grad():
        logits = model(ids).logits[0].log_softmax(-1)  # type: ignore[operator]
    return float(logits[start - 1 : -1].gather(1, ids[0, start:, None]).sum())


def test_accuracy_equals_a_direct_count(reference: Path, few_rows: Path) -> None:
    model, tokenizer = load_model(reference, torch.float32), load_tokenizer(reference)
    rows = [json.loads(line) for line in few_rows.read_text().splitlines()]
    right = 0
    for row in rows:
        values = [log_likelihood(model, tokenizer, row["query"], f" {c}") for c in row["choices"]]
        right += max(range(len(values)), key=values.__getitem__) == row["gold"]
    result, items = measured(reference, {"cloze": few_rows})["cloze"]
    assert result.n == len(rows) == len(items)
    assert result.acc == pytest.approx(right / len(rows))
    assert result.acc > 0.5, "chance is a quarter"


def test_damage_shows(reference: Path, few_rows: Path) -> None:
    model, tokenizer = load_model(reference, torch.float32), load_tokenizer(reference)
    questions = questions_of(reference, {"cloze": few_rows})
    whole = zero_shot(model, tokenizer, questions, batch_size=8)["cloze"][0].acc
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.down_proj.weight[:, ::4] *= 0
            layer.mlp.down_proj.weight[:, 1::4] *= 0
            layer.mlp.down_proj.weight[:, 2::4] *= 0
    questions = questions_of(reference, {"cloze": few_rows})
    assert zero_shot(model, tokenizer, questions, batch_size=8)["cloze"][0].acc < whole


def test_winogrande_rows_are_scored_by_the_shared_ending(reference: Path, tmp_path: Path) -> None:
    rows = [
        {"options": ["It was night and she", "xq zz 77 she"], "continuation": "slept.", "gold": g}
        for g in (0, 1)
    ]
    result, items = measured(reference, {"w": written(tmp_path / "w.jsonl", rows)})["w"]
    assert items[0].choice == items[1].choice and items[0].choice_norm is None
    assert result.acc == 0.5, "the same question with both answers: one of them is right"
    assert result.acc_norm is None


UNCHANGED = """
import os, sys
from pathlib import Path
import torch
before = dict(os.environ)
from tests.quality.asking import measured
measured(Path(sys.argv[1]), {"cloze": Path(sys.argv[2])})
import datasets
assert Path(datasets.config.HF_DATASETS_CACHE) == Path(os.environ["HF_HOME"]) / "datasets"
assert datasets.config.HF_UPDATE_DOWNLOAD_COUNTS, "restored"
# torch and lm-eval add variables of their own while they are imported.
assert before.items() <= os.environ.items(), "a variable of the caller's changed"
assert not any(name.startswith("HF_DATASETS") for name in os.environ)
assert not Path(os.environ["HF_HOME"]).exists(), "the user's cache was written to"
"""


@pytest.mark.slow
def test_the_process_of_the_caller_is_left_as_it_was(
    reference: Path, few_rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its environment, and datasets' own settings and cache."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    for name in ("HF_DATASETS_CACHE", "HF_DATASETS_OFFLINE", "HF_UPDATE_DOWNLOAD_COUNTS"):
        monkeypatch.delenv(name, raising=False)
    command = [sys.executable, "-c", UNCHANGED, str(reference), str(few_rows)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_rows_of_another_kind_are_refused(reference: Path, tmp_path: Path) -> None:
    odd = written(tmp_path / "odd.jsonl", [{"question": "?", "answer": "!"}])
    for door in (lambda: check_tasks({"odd": odd}), lambda: questions_of(reference, {"odd": odd})):
        with pytest.raises(InvalidInput, match="line 1 lacks query, choices, gold"):
            door()


def test_a_tokenizer_with_nothing_to_begin_with_is_refused_before_a_model_is_loaded(
    reference: Path, few_rows: Path
) -> None:
    tokenizer = load_tokenizer(reference)
    asked = Asked(tokenizer, vocabulary=4096, window=512)
    task_questions({"cloze": few_rows}, asked, Protocol())
    tokenizer.bos_token = None
    task_questions({"cloze": few_rows}, asked, Protocol())
    tokenizer.eos_token = None
    with pytest.raises(InvalidInput, match=r"task cloze: .* neither BOS nor EOS"):
        task_questions({"cloze": few_rows}, asked, Protocol())


def test_tokens_that_are_none_or_of_another_model_are_refused(
    reference: Path, few_rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a prompt or a choice without a token lm-eval asserts that it has some."""
    tokenizer = load_tokenizer(reference)
    with pytest.raises(InvalidInput, match=r"row 0: token id \d+ is above the model's vocabulary"):
        task_questions({"cloze": few_rows}, Asked(tokenizer, 5, 512), Protocol())
    for kept, said in ((0, "no token of the prompt"), (1, "no token of one of the choices")):
        monkeypatch.setattr(
            "bipline.quality.zero_shot_tokens.token_ids",
            lambda _, texts, kept=kept, **more: iter([[7] * kept] * len(texts)),
        )
        with pytest.raises(InvalidInput, match=rf"task cloze: row 0: .* {said}"):
            task_questions({"cloze": few_rows}, Asked(tokenizer, 4096, 512), Protocol())


def test_a_task_of_digits_is_text(reference: Path, tmp_path: Path) -> None:
    """lm-eval takes what a template gives for a number where it is one."""
    rows = [{"query": "2", "choices": ["3", "[4]"], "gold": 0}] * 2
    begun = [{"options": ["1", "2"], "continuation": "3", "gold": 1}] * 2
    tasks = {"asked": written(tmp_path / "a.jsonl", rows)}
    tasks["begun"] = written(tmp_path / "b.jsonl", begun)
    found = measured(reference, tasks)
    assert {name: result.n for name, (result, _) in found.items()} == {"asked": 2, "begun": 2}


def test_an_empty_query_is_opened_by_the_models_own_token(reference: Path, tmp_path: Path) -> None:
    rows = [{"query": "", "choices": ["The", "Zq x"], "gold": 0}]
    [item] = measured(reference, {"t": written(tmp_path / "t.jsonl", rows)})["t"][1]
    model, tokenizer = load_model(reference, torch.float32), load_tokenizer(reference)
    for text, found in zip(rows[0]["choices"], item.loglikelihoods, strict=True):
        ids = tokenizer(f" {text}", add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            nats = model(torch.tensor([[tokenizer.bos_token_id, *ids]])).logits[0].log_softmax(-1)
        assert found == pytest.approx(float(nats[:-1].gather(1, torch.tensor(ids)[:, None]).sum()))


def test_a_limit_takes_the_first_rows_and_the_protocol_says_so(
    reference: Path, few_rows: Path
) -> None:
    tasks = {"cloze": few_rows}
    some, whole = (measured(reference, tasks, **more)["cloze"] for more in ({"limit": 5}, {}))
    assert some[0].n == 5
    for one, other in zip(some[1], whole[1], strict=False):
        assert (one.row, one.gold, one.choice) == (other.row, other.gold, other.choice)
    assert Protocol(limit=5).described({}, {})["limit"] == 5
    assert Protocol().described({}, {}).keys().isdisjoint({"limit", "max_excluded"})


def test_no_question_is_among_its_own_examples(reference: Path, tmp_path: Path) -> None:
    """All other rows are asked for as examples, and are what is drawn."""
    rows = [{"query": f"number {n} is", "choices": ["odd", "even"], "gold": 0} for n in range(7)]
    tasks = {"t": written(tmp_path / "t.jsonl", rows)}
    asked = questions_of(reference, tasks, num_fewshot=6)["t"]
    for row, [request, *_] in asked.requests.items():
        *examples, question = request.args[0].split("\n\n")
        assert question == rows[row]["query"]
        others = {f"{each['query']} odd" for each in rows if each is not rows[row]}
        assert set(examples) == others and len(examples) == 6
    other = questions_of(reference, tasks, num_fewshot=6, fewshot_seed=7)["t"]
    asked_first = [each.requests[0][0].args[0] for each in (asked, other)]
    assert asked_first[0] != asked_first[1]
    assert {*asked_first[0].split("\n\n")} == {*asked_first[1].split("\n\n")}
    with pytest.raises(InvalidInput, match=r"task t: row 0: .*[Ss]ample"):
        questions_of(reference, tasks, num_fewshot=7)
