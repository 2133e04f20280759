"""Zero-shot tasks: lm-eval's answer equals a direct count, and the cloze task shows damage."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch

from bipline.base.errors import InvalidInput
from bipline.model.loading import load_model
from bipline.model.tokenizer import load_tokenizer
from bipline.quality.zero_shot import check_tasks, zero_shot
from tests.conftest import ASSETS

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
    result = zero_shot(model, tokenizer, {"cloze": few_rows}, batch_size=8)["cloze"]
    assert result.n == len(rows)
    assert result.acc == pytest.approx(right / len(rows))
    assert result.acc > 0.5, "chance is a quarter"


def test_damage_shows(reference: Path, few_rows: Path) -> None:
    model, tokenizer = load_model(reference, torch.float32), load_tokenizer(reference)
    whole = zero_shot(model, tokenizer, {"cloze": few_rows}, batch_size=8)["cloze"].acc
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.down_proj.weight[:, ::4] *= 0
            layer.mlp.down_proj.weight[:, 1::4] *= 0
            layer.mlp.down_proj.weight[:, 2::4] *= 0
    broken = zero_shot(model, tokenizer, {"cloze": few_rows}, batch_size=8)["cloze"].acc
    assert broken < whole


def test_winogrande_rows_are_scored_by_the_shared_ending(reference: Path, tmp_path: Path) -> None:
    rows = [
        {"options": ["It was night and she", "xq zz 77 she"], "continuation": "slept.", "gold": g}
        for g in (0, 1)
    ]
    (tmp_path / "w.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model, tokenizer = load_model(reference, torch.float32), load_tokenizer(reference)
    result = zero_shot(model, tokenizer, {"w": tmp_path / "w.jsonl"}, batch_size=2)["w"]
    assert result.acc == 0.5, "the same question with both answers: one of them is right"
    assert result.acc_norm is None


UNCHANGED = """
import os, sys
from pathlib import Path
import torch
from bipline.model.loading import load_model
from bipline.model.tokenizer import load_tokenizer
before = dict(os.environ)
model, tokenizer = load_model(Path(sys.argv[1]), torch.float32), load_tokenizer(Path(sys.argv[1]))
from bipline.quality.zero_shot import check_tasks, zero_shot
zero_shot(model, tokenizer, {"cloze": Path(sys.argv[2])}, batch_size=8)
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


def test_rows_of_another_form_are_refused(reference: Path, tmp_path: Path) -> None:
    (tmp_path / "odd.jsonl").write_text('{"question": "?", "answer": "!"}\n')
    with pytest.raises(InvalidInput, match="line 1 lacks query, choices, gold"):
        zero_shot(None, None, {"odd": tmp_path / "odd.jsonl"}, batch_size=1)


def test_a_tokenizer_with_nothing_to_begin_with_is_refused_before_a_model_is_loaded(
    reference: Path, few_rows: Path
) -> None:
    tokenizer = load_tokenizer(reference)
    check_tasks({"cloze": few_rows}, tokenizer)
    tokenizer.bos_token = None
    check_tasks({"cloze": few_rows}, tokenizer)
    tokenizer.eos_token = None
    with pytest.raises(InvalidInput, match=r"task cloze: .* neither BOS nor EOS"):
        check_tasks({"cloze": few_rows}, tokenizer)


def test_tokens_that_are_none_or_of_another_model_are_refused(
    reference: Path, few_rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = load_tokenizer(reference)
    with pytest.raises(InvalidInput, match=r"token id \d+ is above the model's vocabulary of 5"):
        check_tasks({"cloze": few_rows}, tokenizer, 5)
    monkeypatch.setattr("bipline.quality.zero_shot.token_ids", lambda *_, **more: iter([[]]))
    with pytest.raises(InvalidInput, match=r"task cloze: .* makes no token of"):
        check_tasks({"cloze": few_rows}, tokenizer, 5)


def test_a_choice_of_which_nothing_is_left_is_refused(
    few_rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """lm-eval asserts it, when it comes to the row."""
    monkeypatch.setattr(
        "bipline.quality.zero_shot._simple_evaluate", mock.Mock(side_effect=AssertionError)
    )
    with pytest.raises(InvalidInput, match=r"tasks cloze: .* no token of one of the choices"):
        zero_shot(None, None, {"cloze": few_rows}, batch_size=1)


def test_a_task_of_digits_is_text(reference: Path, tmp_path: Path) -> None:
    """lm-eval takes what a template gives for a number where it is one."""
    rows = [{"query": "2", "choices": ["3", "[4]"], "gold": 0}] * 2
    rows += [{"options": ["1", "2"], "continuation": "3", "gold": 1}] * 2
    for name, of in {"asked": rows[:2], "begun": rows[2:]}.items():
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, of)))
    tasks = {name: tmp_path / f"{name}.jsonl" for name in ("asked", "begun")}
    model, tokenizer = load_model(reference, torch.float32), load_tokenizer(reference)
    found = zero_shot(model, tokenizer, tasks, batch_size=2)
    assert {name: each.n for name, each in found.items()} == {"asked": 2, "begun": 2}
