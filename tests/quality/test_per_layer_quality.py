"""A model whose blocks differ, measured and recovered as any other, by our own class."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bipline.compression.prune import prune
from bipline.delivery.verification import verify_hf
from bipline.model.block_loop import BlockLoop
from bipline.model.loading import load_model
from bipline.model.opening import open_checkpoint
from bipline.model.tokenizer import load_tokenizer
from bipline.quality.evaluate import evaluate
from bipline.quality.perplexity import perplexity, text_windows
from bipline.recovery.place import Place
from bipline.recovery.recover import Request, recover
from bipline.settings.protocol import Protocol
from bipline.settings.recipes import LoraRecipe
from bipline.storage.directory import atomic_directory
from bipline.storage.manifest import read_manifest
from tests.compression.test_calibrate import prose
from tests.conftest import ASSETS
from tests.per_layer import kept, plan_of
from tests.quality.test_zero_shot import CLOZE, log_likelihood

TEXT = ASSETS / "texts" / "prose.txt"


@pytest.fixture(scope="module")
def narrowed(reference: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reference model without a tenth of its channels, some sublayers and a block."""
    checkpoint = open_checkpoint(reference)
    shape = checkpoint.shape
    groups, channels = list(range(shape.num_key_value_heads)), list(range(shape.intermediate_size))
    blocks = [kept(groups, channels[index * 4 :]) for index in range(shape.num_hidden_layers)]
    blocks[0] = kept([], channels)
    blocks[1] = kept([], [])
    blocks[2] = kept(groups[1:], [])
    out = tmp_path_factory.mktemp("narrowed") / "model"
    prune(checkpoint, plan_of(checkpoint, blocks), out)
    return out


@pytest.fixture
def as_users_load_it(narrowed: Path, load_as_users_do: Callable[..., Any]) -> Any:
    return load_as_users_do(narrowed, torch.float32)


def test_perplexity_equals_that_of_the_code_that_is_shipped(
    narrowed: Path, as_users_load_it: Any
) -> None:
    windows = text_windows(load_tokenizer(narrowed), [TEXT.read_text(encoding="utf-8")], 64, "none")
    measured = perplexity(BlockLoop(open_checkpoint(narrowed)), windows, "text")
    with torch.no_grad():
        logits = as_users_load_it(windows).logits[:, :-1]
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
    assert measured.value == pytest.approx(math.exp(float(losses)), rel=1e-5)


@pytest.mark.slow
def test_tasks_and_speed_are_those_of_the_code_that_is_shipped(
    narrowed: Path, as_users_load_it: Any, tmp_path: Path
) -> None:
    lines = CLOZE.read_text(encoding="utf-8").splitlines(keepends=True)[:12]
    rows = tmp_path / "cloze.jsonl"
    rows.write_text("".join(lines), encoding="utf-8")
    protocol = Protocol(speed=True, speed_prompt_tokens=8, speed_decoded_tokens=4, speed_repeats=1)
    record = evaluate(narrowed, protocol, {}, {"cloze": rows})
    tokenizer, right = load_tokenizer(narrowed), 0
    for row in map(json.loads, lines):
        values = [
            log_likelihood(as_users_load_it, tokenizer, row["query"], f" {choice}")
            for choice in row["choices"]
        ]
        right += max(range(len(values)), key=values.__getitem__) == row["gold"]
    assert record.tasks["cloze"].acc == pytest.approx(right / len(lines))
    assert record.parameters == read_manifest(narrowed).info["parameters"]
    assert record.speed is not None and record.speed.decode_tokens_per_second > 0


@pytest.mark.slow
def test_recovery_keeps_the_widths_and_the_code(narrowed: Path, tmp_path: Path) -> None:
    for name, words in (("train", 900), ("held-out", 200)):
        (tmp_path / f"{name}.txt").write_text(prose(len(name), words), encoding="utf-8")
    recipe = LoraRecipe(steps=12, batch_size=4, seqlen=32, learning_rate=5e-3, dropout=0.0)
    with atomic_directory(tmp_path / "out", "model") as writer:
        request = Request(narrowed, tmp_path / "train.txt", tmp_path / "held-out.txt", recipe)
        record = recover(request, Place(tmp_path / "training"), writer)
    assert record.accepted, record
    before, after = open_checkpoint(narrowed), open_checkpoint(tmp_path / "out")
    assert after.shape == before.shape
    for path in narrowed.glob("*.py"):
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()
    verify_hf(tmp_path / "out", tmp_path / "out", narrowed)
    assert type(load_model(tmp_path / "out", torch.float32)).__module__.startswith("bipline.")


@pytest.mark.parametrize("name", ["reference-llm", "reference-mha", "stories260K"])
def test_real_models_agree_with_their_source(data: Path, name: str, tmp_path: Path) -> None:
    """Tensors, logits, token ids of a page and cached decoding, with real tokenizers."""
    model = data / "models" / name
    checkpoint = open_checkpoint(model)
    shape = checkpoint.shape
    blocks = [
        kept([*range(shape.num_key_value_heads)][index % 2 :], [*range(32 + index)])
        for index in range(shape.num_hidden_layers)
    ]
    blocks[0] = kept([], list(blocks[0].ffn_channels))
    prune(checkpoint, plan_of(checkpoint, blocks), tmp_path / "out")
    verify_hf(tmp_path / "out", tmp_path / "out", model)
