"""What is learned of instructions: the answers' tokens and what ends them, and nothing else."""

from __future__ import annotations

import json
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bipline.base.errors import InvalidInput
from bipline.model.tokenizer import load_tokenizer
from bipline.recovery.examples import NOT_LEARNED, Examples, examples_of
from bipline.settings.recipes import LoraRecipe

REFERENCE = Path("assets/reference-llm")
TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}"
    "{% if m.role == 'assistant' %}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
ALPACA = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
ALPACA_ALONE = (
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request.\n\n### Instruction:\n{instruction}\n\n### Response:\n"
)
WORDS = st.text("abc {}\n#:", min_size=1, max_size=30).filter(lambda text: bool(text.strip()))
ROWS = st.lists(
    st.fixed_dictionaries({"instruction": WORDS, "input": st.just("") | WORDS, "output": WORDS}),
    min_size=1,
    max_size=12,
)


@cache
def reference_tokenizer() -> Any:
    return load_tokenizer(REFERENCE)


def expected(tokenizer: Any, rows: list[dict[str, str]], seqlen: int, templated: bool) -> Examples:
    """The same by hand: every row in the words of the prompt, packed, cut, the empty left out."""
    pairs: list[tuple[int, int]] = []
    for row in rows:
        if templated:
            said = "\n\n".join(row[name] for name in ("instruction", "input") if row[name])
            prompt = f"[user]{said}[assistant]"
        else:
            prompt = (ALPACA if row["input"] else ALPACA_ALONE).format(**row)
        answer = row["output"] + tokenizer.eos_token
        pairs += [(each, NOT_LEARNED) for each in encoded(tokenizer, prompt)]
        pairs += [(each, each) for each in encoded(tokenizer, answer)]
    windows = [pairs[at : at + seqlen] for at in range(0, len(pairs) - seqlen + 1, seqlen)]
    windows = [[(window[0][0], NOT_LEARNED), *window[1:]] for window in windows]
    useful = [window for window in windows if any(label != NOT_LEARNED for _, label in window)]
    found = torch.tensor(useful, dtype=torch.int64).view(-1, seqlen, 2)
    return Examples(found[..., 0], found[..., 1])


def encoded(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("templated", [False, True])
@settings(max_examples=25, deadline=None)
@given(rows=ROWS, seqlen=st.integers(2, 40))
def test_the_answers_tokens_are_learned_and_no_other(
    templated: bool,
    rows: list[dict[str, str]],
    seqlen: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    tokenizer = reference_tokenizer()
    tokenizer.chat_template = TEMPLATE if templated else None
    file = tmp_path_factory.getbasetemp() / "asked.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    wanted = expected(tokenizer, rows, seqlen, templated)
    recipe = LoraRecipe(batch_size=1, seqlen=seqlen)
    if not len(wanted):
        with pytest.raises(InvalidInput, match="has 0 windows"):
            examples_of(tokenizer, f"chat:{file}", recipe)
        return
    found = examples_of(tokenizer, f"chat:{file}", recipe)
    assert found.windows.equal(wanted.windows)
    assert found.labels.equal(wanted.labels)


def test_what_is_learned_reads_as_the_answers(tmp_path: Path) -> None:
    """In one window, whose first token belongs to a prompt, every answer is learned whole."""
    tokenizer = reference_tokenizer()
    tokenizer.chat_template = None
    answers = ["The sea is blue.", "Seven.", "It was night, and nobody came."]
    rows = [{"instruction": "Tell me.", "output": answer} for answer in answers]
    file = tmp_path / "asked.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    size = sum(len(encoded(tokenizer, ALPACA_ALONE.format(**row))) for row in rows)
    size += sum(len(encoded(tokenizer, answer + tokenizer.eos_token)) for answer in answers)
    recipe = LoraRecipe(batch_size=1, seqlen=size)
    [labels] = examples_of(tokenizer, f"chat:{file}", recipe).labels.tolist()
    runs = [
        list(run) for learned, run in groupby(labels, lambda each: each != NOT_LEARNED) if learned
    ]
    assert [tokenizer.decode(run) for run in runs] == [a + tokenizer.eos_token for a in answers]
