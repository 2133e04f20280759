"""Families beside LLaMA's, mixtures of experts among them: each check on each of them.

A tiny model of each, with every switch of its config on, in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from bipline.base.errors import InvalidInput
from bipline.compression.allocate import allocate
from bipline.compression.criteria.interface import Options
from bipline.compression.prune import check_budget, prune, pruned_config
from bipline.compression.score import compute_scores
from bipline.compression.statistics import empty_statistics
from bipline.model.block_loop import BlockLoop
from bipline.model.checkpoint import Checkpoint
from bipline.model.families import build_of, heads_fixed
from bipline.model.loading import load_model
from bipline.model.opening import open_checkpoint
from bipline.model.per_layer.classes import PER_LAYER_CLASSES
from bipline.quality.perplexity import token_losses
from bipline.settings.line import AllocateSettings
from bipline.values.plan import PruningPlan
from tests.looped import by_the_stock_class, cached_tolerance, check_parts, sliced_tolerance
from tests.masking import layers_of, silence
from tests.scored import scored
from tests.tiny import (
    EXPERT_CASES,
    HEADS_FIXED_CASES,
    MORE_CASES,
    PARALLEL_CASES,
    tiny_model,
    token_windows,
)

WINDOWS = token_windows(windows=2, seqlen=20)


# A few in the quick tests, the rest in the slow ones.
QUICK = {
    "granite", "gemma", "olmo", "smollm3", "helium", "gemma2", "olmo2", "mixtral", "qwen3-moe",
    "phi3", "cohere", "phi", "starcoder2", "nemotron", "opt",
    "gpt-neox", "gpt2", "falcon-new", "bloom",
}  # fmt: skip
ASKED = [
    pytest.param(case, marks=() if case in QUICK else pytest.mark.slow)
    for case in MORE_CASES | PARALLEL_CASES | HEADS_FIXED_CASES | EXPERT_CASES
]
# More than experts alone can lose, so that attention loses some; or less, where a token needs half.
RATIOS = {
    "mixtral": 0.7,
    "qwen3-moe": 0.7,
    "gpt-oss": 0.7,
    "qwen3-moe-unnormed": 0.3,
    "glm4-moe": 0.3,
}
# Less than a narrow FFN alone can lose.
RATIOS |= dict.fromkeys(HEADS_FIXED_CASES, 0.3)


@pytest.fixture(scope="module", params=ASKED)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("more") / request.param, request.param)


def same(found: torch.Tensor, expected: torch.Tensor, atol: float = 1e-10) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


def plan_of(checkpoint: Checkpoint, ratio: float = 0.4, **asked: Any) -> PruningPlan:
    scores = compute_scores(checkpoint, empty_statistics(checkpoint), "random", Options())
    return allocate(checkpoint, scores, AllocateSettings(ratio=ratio, **asked), 0)


def logits_of(built: Any) -> torch.Tensor:
    with torch.no_grad():
        return built(WINDOWS).logits


def masked(directory: Path, checkpoint: Checkpoint, plan: PruningPlan) -> Any:
    """transformers' dense model with what a plan cuts silent."""
    built = load_model(directory, torch.float64)
    silence(built, checkpoint, plan.blocks)
    return built


def test_the_loop_computes_what_transformers_does(model: Path) -> None:
    """Logits, losses, a block in halves; and token by token with a cache."""
    loop = BlockLoop(open_checkpoint(model), torch.float64)
    expected = logits_of(load_model(model, torch.float64))
    same(loop.logits(WINDOWS), expected)
    losses = token_losses(loop, WINDOWS, "losses", None)
    wanted = torch.nn.functional.cross_entropy(
        expected[:, :-1].flatten(0, 1), WINDOWS[:, 1:].flatten(), reduction="none"
    )
    torch.testing.assert_close(losses.double().flatten(), wanted, rtol=1e-6, atol=1e-6)
    check_parts(loop, WINDOWS, expected)


def test_masked_logits_are_those_of_the_sliced_model(model: Path, tmp_path: Path) -> None:
    """Loaded by transformers' stock class and nothing of ours, whole and with a cache."""
    checkpoint = open_checkpoint(model)
    if checkpoint.family.ffn_fixed:
        with pytest.raises(InvalidInput, match="whole blocks alone can go"):
            plan_of(checkpoint)
        return
    plan = plan_of(checkpoint, RATIOS.get(model.name, 0.4))
    prune(checkpoint, plan, tmp_path / "pruned")
    expected = logits_of(masked(model, checkpoint, plan))
    plain = by_the_stock_class(tmp_path / "pruned")
    same(logits_of(plain), expected, sliced_tolerance(plain.config))
    loop = BlockLoop(open_checkpoint(tmp_path / "pruned"), torch.float64)
    same(loop.logits(WINDOWS), logits_of(plain))
    with torch.no_grad():
        known = plain(WINDOWS[:, :9], use_cache=True).past_key_values
        rest = plain(WINDOWS[:, 9:], past_key_values=known).logits
    tolerance = cached_tolerance(plain.config)
    torch.testing.assert_close(rest, expected[:, 9:], rtol=0, atol=tolerance)
    groups = {len(block.attention_groups) for block in plan.blocks}
    shape = checkpoint.shape
    whole = heads_fixed(checkpoint.config) or shape.num_key_value_heads == 1 or shape.dense_blocks
    assert (groups == {shape.num_key_value_heads}) == bool(whole)


def test_channels_that_go_from_every_expert(model: Path, tmp_path: Path) -> None:
    """Each expert keeps its own, as many as the others; the stock class runs what is left."""
    checkpoint = open_checkpoint(model)
    shape = checkpoint.shape
    if not build_of(checkpoint.family).has_experts:
        with pytest.raises(InvalidInput, match="of_experts channels: the FFNs of this model are"):
            plan_of(checkpoint, of_experts="channels")
        return
    plan = plan_of(checkpoint, 0.2, of_experts="channels")
    prune(checkpoint, plan, tmp_path / "pruned")
    expected = logits_of(masked(model, checkpoint, plan))
    plain = by_the_stock_class(tmp_path / "pruned")
    # As most load it, by the way that transformers runs experts in this dtype.
    usual = AutoModelForCausalLM.from_pretrained(tmp_path / "pruned", dtype=torch.bfloat16).eval()
    assert bool(logits_of(usual).isfinite().all())
    # The router keeps its rows and reads what it read.
    same(logits_of(plain), expected)
    cut = open_checkpoint(tmp_path / "pruned")
    same(BlockLoop(cut, torch.float64).logits(WINDOWS), expected)
    assert cut.shape.num_experts == shape.num_experts
    assert cut.shape.intermediate_size < shape.intermediate_size
    assert cut.shape.shared_experts == shape.shared_experts
    reached = 1 - cut.shape.linear_weights / shape.linear_weights
    assert plan.budget.reached_blocks == pytest.approx(reached, abs=1e-12) and reached >= 0.2
    # A budget is of matrices: biases of what goes are beside it.
    gone = shape.intermediate_size - cut.shape.intermediate_size
    each = 2 * gone if build_of(checkpoint.family).transposed_experts else 0
    biases = shape.num_hidden_layers * shape.num_experts * each
    assert cut.parameters + biases == checkpoint.parameters * (1 - plan.budget.reached_total)
    check_budget(checkpoint, plan)


@pytest.mark.parametrize("case", sorted(QUICK & HEADS_FIXED_CASES.keys()))
def test_a_model_without_a_block_is_that_of_transformers_without_it(
    case: str, tmp_path: Path
) -> None:
    """Though its class fixes widths: more may go than an FFN has."""
    model = tiny_model(tmp_path / "model", case, num_hidden_layers=3)
    checkpoint = open_checkpoint(model)
    _, scores = scored(model, "block-influence")
    plan = allocate(checkpoint, scores, AllocateSettings(ratio=0.66), 0)
    prune(checkpoint, plan, tmp_path / "pruned")
    dense = load_model(model, torch.float64)
    layers, kept = layers_of(dense), set(plan.kept_blocks)
    assert len(kept) == 1
    for index in sorted(set(range(3)) - kept, reverse=True):
        del layers[index]
    with torch.no_grad():
        expected = dense(WINDOWS, use_cache=False).logits
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "pruned", dtype=torch.float64)
    same(logits_of(plain), expected)
    same(BlockLoop(open_checkpoint(tmp_path / "pruned"), torch.float64).logits(WINDOWS), expected)


def test_a_width_that_a_class_fixes_is_refused(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny_model(tmp_path / "model", "bloom"))
    with pytest.raises(InvalidInput, match=r"BloomForCausalLM fixes .* use criterion block-infl"):
        plan_of(checkpoint)
    plan = plan_of(open_checkpoint(tiny_model(tmp_path / "other", "gpt2-wide")))
    with pytest.raises(InvalidInput, match="no transformers class holds a bloom with"):
        pruned_config(checkpoint, plan)


def test_blocks_of_widths_of_their_own(
    model: Path, tmp_path: Path, load_as_users_do: Callable[..., Any]
) -> None:
    checkpoint = open_checkpoint(model)
    if f"per_layer_{checkpoint.config['model_type']}" not in PER_LAYER_CLASSES:
        with pytest.raises(InvalidInput, match=r"no class yet for a .* use the uniform layout"):
            plan_of(checkpoint, ratio=0.2, layout="per-layer", keep_first=1)
        return
    plan = plan_of(checkpoint, ratio=0.2, layout="per-layer", keep_first=1)
    prune(checkpoint, plan, tmp_path / "pruned")
    expected = logits_of(masked(model, checkpoint, plan))
    same(logits_of(load_as_users_do(tmp_path / "pruned")), expected)
    loop = BlockLoop(open_checkpoint(tmp_path / "pruned"), torch.float64)
    same(loop.logits(WINDOWS), expected)


def test_positions_of_longrope_beyond_those_it_was_trained_on(tmp_path: Path) -> None:
    """Phi-3 by its own class, and by Mistral's without a head: windows of the long factors."""
    model = tiny_model(tmp_path / "model", "phi3-longrope")
    checkpoint, longer = open_checkpoint(model), token_windows(windows=1, seqlen=80)
    plan = plan_of(checkpoint)
    prune(checkpoint, plan, tmp_path / "pruned")
    with torch.no_grad():
        dense = load_model(model, torch.float64)(longer).logits
        expected = masked(model, checkpoint, plan)(longer).logits
        smaller = load_model(tmp_path / "pruned", torch.float64)
        same(smaller(longer).logits, expected)
    assert type(smaller).__name__ == "MistralForCausalLM"
    same(BlockLoop(checkpoint, torch.float64).logits(longer), dense)
    same(BlockLoop(open_checkpoint(tmp_path / "pruned"), torch.float64).logits(longer), expected)
