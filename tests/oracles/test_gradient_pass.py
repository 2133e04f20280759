"""Where and how a gradient pass is computed: no place and no micro-batch changes a bit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from bipline.base.errors import InvalidInput
from bipline.compression.computing import Computing
from bipline.compression.gradient_sums import (
    gradient_memory,
    gradient_need,
    gradient_sums,
)
from bipline.model.block_loop import BlockLoop
from bipline.model.opening import open_checkpoint
from tests.layers import ROOT
from tests.scored import WINDOWS, assert_same_bits, assert_same_scores, scored
from tests.tiny import tiny_model


@pytest.mark.parametrize(
    "how",
    [{"micro_batch": 4}, {"resident": False}, {"resident": False, "micro_batch": 16}, {}],
)
def test_place_and_micro_batch_change_no_bit(
    llama: Path, tmp_path: Path, how: dict[str, Any]
) -> None:
    expected, scores = scored(llama, computing=Computing())
    found, again = scored(llama, computing=Computing(**how), work=tmp_path)
    assert_same_bits(expected, found)
    assert_same_scores(scores, again)
    assert not list(tmp_path.iterdir())


def test_killed_pass_starts_again_to_the_same_bits(llama: Path, tmp_path: Path) -> None:
    computing = Computing(resident=False)
    killed = gradient_sums(open_checkpoint(llama), WINDOWS, computing, tmp_path)
    next(killed)
    killed.close()
    assert list((tmp_path / "gradients").iterdir())
    found, _ = scored(llama, computing=computing, work=tmp_path)
    assert_same_bits(scored(llama, computing=Computing())[0], found)
    assert not list(tmp_path.iterdir())


def test_inputs_of_blocks_go_to_the_disk_where_the_limit_is_tight(
    llama: Path, tmp_path: Path
) -> None:
    need = gradient_memory(BlockLoop(open_checkpoint(llama), micro_batch=1), WINDOWS)
    # Embedding, two blocks' outputs and one gradient.
    assert need.hidden_states == 4 * WINDOWS.numel() * 32 * 4
    tight = Computing(max_memory=need.least + (need.hidden_states >> 1) + (1 << 30))
    assert len(scored(llama, computing=tight, work=tmp_path)[0].blocks) == 2
    with pytest.raises(InvalidInput, match=r"at least .* of memory are needed"):
        scored(llama, computing=Computing(max_memory=need.least >> 4), work=tmp_path)


# Blocks and logits that are more than a rounding of what the libraries take.
LARGE = {
    "hidden_size": 512, "intermediate_size": 4096, "num_attention_heads": 8,
    "num_key_value_heads": 4, "head_dim": 64, "num_hidden_layers": 2, "vocab_size": 32_000,
}  # fmt: skip
SCORE = """
import sys
import torch
from bipline.base.machine import anonymous_memory
from bipline.model.memory import watching_memory
from bipline.compression.computing import Computing
from tests.scored import scored
scored(sys.argv[2])
before = anonymous_memory()
windows = torch.randint(32_000, (32, 128), generator=torch.Generator().manual_seed(0))
with watching_memory() as peak:
    scored(sys.argv[1], sys.argv[3], Computing(), windows=windows, **eval(sys.argv[4]))
print(peak.anonymous - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("criterion", "options"), [("llm-pruner", {}), ("bi-level", {"tokens": 4096})]
)
def test_memory_is_what_is_told(
    tmp_path: Path, llama: Path, criterion: str, options: dict[str, Any]
) -> None:
    model = tiny_model(tmp_path / "model", "llama-gqa", dtype=torch.float32, **LARGE)
    command = [sys.executable, "-c", SCORE, model, llama, criterion, repr(options)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    told = gradient_need(open_checkpoint(model), torch.float32, (32, 128), 0).total
    assert told / 1.6 < int(ended.stdout) < 1.6 * told


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model", "llama-gqa")
    weights = load_file(model / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][3, 3] = float("nan")
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    with pytest.raises(InvalidInput, match="weight holds NaN or infinity"):
        scored(model)


@pytest.mark.slow
def test_bfloat16_adds_up_in_float32(reference: Path) -> None:
    windows = torch.randint(4096, (17, 64), generator=torch.Generator().manual_seed(0))
    one, other = (
        scored(reference, computing=Computing(dtype), windows=windows)[0]
        for dtype in (torch.float32, torch.bfloat16)
    )
    for expected, found in zip(one.blocks, other.blocks, strict=True):
        assert all(value.dtype == torch.float64 for value in found.values())
        for name in ("ffn_element_first", "ffn_element_second", "attention_element_first"):
            torch.testing.assert_close(found[name], expected[name], rtol=0.2, atol=0)
