"""Files that call tensors otherwise than their class does, or hold what it computes itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from bipline.base.errors import InvalidInput
from bipline.compression.allocate import allocate
from bipline.compression.prune import prune
from bipline.model.block_loop import BlockLoop
from bipline.model.families import build_of
from bipline.model.loading import load_model
from bipline.model.opening import open_checkpoint
from bipline.settings.line import AllocateSettings
from bipline.values.plan import PruningPlan
from tests.oracles.test_slicing import random_plan
from tests.scored import scored
from tests.tiny import tiny_model, token_windows

WINDOWS = token_windows(windows=2, seqlen=12)
# What files of before hold beside the weights of a block.
BUFFERS = {
    "gpt-neox": ("attention.bias", "attention.masked_bias", "attention.rotary_emb.inv_freq"),
    "gpt2": ("attn.bias", "attn.masked_bias"),
    "falcon": ("self_attention.rotary_emb.inv_freq",),
    "opt": (),
    "bloom": (),
    "llama-gqa": ("self_attn.rotary_emb.inv_freq",),
}


def as_before(model: Path, case: str) -> str:
    """Write a model without the root of its names, and with buffers; the root."""
    file = model / "model.safetensors"
    prefix = build_of(open_checkpoint(model).family).block_prefix
    root = f"{prefix.partition('.')[0]}."
    tensors = {name.removeprefix(root): held for name, held in load_file(file).items()}
    for name in BUFFERS[case]:
        held = torch.tensor(-1e9) if "masked" in name else torch.ones(1, 1, 4, 4, dtype=torch.bool)
        tensors[prefix.removeprefix(root).format(index=0) + name] = held
    save_file(tensors, file, {"format": "pt"})
    return root


def plan_of(model: Path) -> PruningPlan:
    """Of a model whose class fixes all widths one block goes, of others channels."""
    checkpoint = open_checkpoint(model)
    if not checkpoint.family.ffn_fixed:
        return random_plan(checkpoint, 0.3)
    _, scores = scored(model, "block-influence")
    return allocate(checkpoint, scores, AllocateSettings(ratio=0.3), 0)


@pytest.mark.parametrize("case", BUFFERS)
def test_names_without_a_root_are_read_and_kept(case: str, tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model", case)
    whole = open_checkpoint(model)
    expected = BlockLoop(whole, torch.float64).logits(WINDOWS)
    root = as_before(model, case)
    checkpoint = open_checkpoint(model)
    assert checkpoint.tensors.keys() == whole.tensors.keys()
    assert checkpoint.tensor_digest != whole.tensor_digest, "names are part of what a model is"
    assert BlockLoop(checkpoint, torch.float64).logits(WINDOWS).equal(expected)
    with torch.no_grad():
        found = load_model(model, torch.float64)(WINDOWS).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    prune(checkpoint, plan_of(model), tmp_path / "pruned")
    names = load_file(tmp_path / "pruned" / "model.safetensors").keys()
    assert not any(name.startswith(root) for name in names)
    assert names <= load_file(model / "model.safetensors").keys()
    smaller = open_checkpoint(tmp_path / "pruned")
    expected = BlockLoop(smaller, torch.float64).logits(WINDOWS)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "pruned", dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(plain(WINDOWS).logits, expected, rtol=0, atol=1e-10)


def test_a_tensor_under_both_its_names_is_refused(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model", "gpt-neox")
    file = model / "model.safetensors"
    tensors = load_file(file)
    save_file({**tensors, "lm_head.weight": tensors["embed_out.weight"].clone()}, file)
    with pytest.raises(InvalidInput, match=r"tensor embed_out.weight does not belong"):
        open_checkpoint(model)
