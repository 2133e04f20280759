"""Slicing against masking: a model with groups cut equals the model with them silent."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bipline.compression.allocate import allocate
from bipline.compression.criteria.interface import Options
from bipline.compression.prune import prune
from bipline.compression.score import compute_scores
from bipline.compression.statistics import empty_statistics
from bipline.model.block_loop import BlockLoop
from bipline.model.checkpoint import Checkpoint
from bipline.model.families import exported_config
from bipline.model.loading import load_model
from bipline.model.opening import open_checkpoint
from bipline.settings.line import AllocateSettings
from bipline.values.plan import PruningPlan
from tests.masking import silence
from tests.tiny import config_of, token_windows

CLASS_OF_CUT = {
    # 8 query heads of 4 in a hidden size of 32: 6 heads do not divide it any more.
    "llama-gqa": "MistralForCausalLM",
    "llama-gqa-scaled-rope": "MistralForCausalLM",
    "llama-gqa-biased": "SeedOssForCausalLM",
    "llama-mqa": "LlamaForCausalLM",
    # Engines take hidden_size / heads for a Qwen2's head_dim.
    "qwen2-gqa": "SeedOssForCausalLM",
    "qwen2-mqa": "Qwen2ForCausalLM",
}


def random_plan(checkpoint: Checkpoint, ratio: float, seed: int = 0) -> PruningPlan:
    scores = compute_scores(checkpoint, empty_statistics(checkpoint), "random", Options(seed=seed))
    return allocate(checkpoint, scores, AllocateSettings(ratio=ratio), 0)


@pytest.mark.parametrize("ratio", [0.3, 0.5])
def test_masked_logits_equal_sliced_logits(
    family_model: Path, ratio: float, tmp_path: Path
) -> None:
    checkpoint = open_checkpoint(family_model)
    plan = random_plan(checkpoint, ratio)
    prune(checkpoint, plan, tmp_path / "pruned")
    token_ids = token_windows()
    masked = load_model(family_model, torch.float64)
    silence(masked, checkpoint, plan.blocks)
    sliced = load_model(tmp_path / "pruned", torch.float64)
    with torch.no_grad():
        difference = (masked(token_ids).logits - sliced(token_ids).logits).abs().max()
    assert difference < 1e-10
    assert sum(p.numel() for p in sliced.parameters()) < sum(p.numel() for p in masked.parameters())


def test_block_loop_equals_transformers(family_model: Path) -> None:
    token_ids = token_windows(windows=2)
    loop = BlockLoop(open_checkpoint(family_model), torch.float64)
    with torch.no_grad():
        expected = load_model(family_model, torch.float64)(token_ids).logits
    assert (loop.logits(token_ids) - expected).abs().max() < 1e-10


def test_pruned_model_runs_in_the_block_loop(family_model: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(family_model)
    prune(checkpoint, random_plan(checkpoint, 0.4), tmp_path / "pruned")
    token_ids = token_windows(windows=2)
    with torch.no_grad():
        expected = load_model(tmp_path / "pruned", torch.float64)(token_ids).logits
    actual = BlockLoop(open_checkpoint(tmp_path / "pruned"), torch.float64).logits(token_ids)
    assert (actual - expected).abs().max() < 1e-10


def test_export_class_holds_what_llama_cannot(family_model: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(family_model)
    manifest = prune(checkpoint, random_plan(checkpoint, 0.3), tmp_path / "pruned")
    expected = CLASS_OF_CUT.get(family_model.name)
    if expected:
        assert manifest.info["architecture"] == expected
    cut = open_checkpoint(tmp_path / "pruned")
    assert cut.config["head_dim"] == checkpoint.shape.head_dim
    assert cut.parameters == manifest.info["parameters"]


def test_a_qwen2_stays_one_where_its_heads_make_up_hidden_size_or_it_slides() -> None:
    whole = exported_config(config_of("qwen2-gqa"), 24, 4)
    assert (whole["model_type"], whole["num_attention_heads"]) == ("qwen2", 8)
    cut = exported_config(
        config_of("qwen2-gqa", sliding_window=64, use_sliding_window=False), 24, 3
    )
    assert (cut["model_type"], cut["attention_bias"]) == ("seed_oss", True)
    assert not {"sliding_window", "use_sliding_window", "max_window_layers"} & cut.keys()
    for sliding in ({"use_sliding_window": True}, {"layer_types": ["sliding_attention"] * 2}):
        slides = exported_config(config_of("qwen2-gqa", sliding_window=8, **sliding), 24, 3)
        assert slides["model_type"] == "qwen2"
        assert sliding.items() <= slides.items()


def test_mqa_keeps_its_attention(tmp_path: Path, family_model: Path) -> None:
    checkpoint = open_checkpoint(family_model)
    plan = random_plan(checkpoint, 0.3)
    if checkpoint.shape.num_key_value_heads == 1:
        assert all(block.attention_groups == (0,) for block in plan.blocks)
        assert "MQA" in plan.notes[0]
    else:
        assert all(
            len(block.attention_groups) < checkpoint.shape.num_key_value_heads
            for block in plan.blocks
        )
        assert plan.notes == ()


def test_same_plan_gives_same_bytes_wherever_it_is_written(llama: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(llama)
    plan = random_plan(checkpoint, 0.4)
    first = prune(checkpoint, plan, tmp_path / "a")
    second = prune(checkpoint, plan, tmp_path / "deep" / "er" / "b")
    assert first == second
    for name in first.files:
        assert (tmp_path / "a" / name).read_bytes() == (
            tmp_path / "deep" / "er" / "b" / name
        ).read_bytes()


@pytest.mark.parametrize("shard_bytes", [1, 3_000, 10**9])
def test_sharding_changes_files_but_not_the_model(
    llama: Path, tmp_path: Path, shard_bytes: int
) -> None:
    checkpoint = open_checkpoint(llama)
    plan = random_plan(checkpoint, 0.4)
    prune(checkpoint, plan, tmp_path / "whole")
    prune(checkpoint, plan, tmp_path / "shards", shard_bytes)
    whole, shards = open_checkpoint(tmp_path / "whole"), open_checkpoint(tmp_path / "shards")
    assert whole.tensor_digest == shards.tensor_digest
    assert load_model(tmp_path / "shards", torch.float64) is not None
