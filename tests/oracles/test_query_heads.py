"""Query heads that go from every group: sliced as masked, in every class that can hold it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from bipline.base.errors import InvalidInput
from bipline.compression.allocate import allocate, check_allocation
from bipline.compression.allocation.widths import Widths
from bipline.compression.criteria import CRITERIA, options_of
from bipline.compression.criteria.interface import Options
from bipline.compression.prune import check_budget, check_plan, prune
from bipline.compression.score import compute_scores
from bipline.compression.slicing import kept_indices
from bipline.compression.statistics import empty_statistics
from bipline.delivery.card import removed_text
from bipline.model.block_loop import BlockLoop
from bipline.model.checkpoint import Checkpoint
from bipline.model.config_keys import checked_config
from bipline.model.families import holding_class, tensor_shapes
from bipline.model.loading import load_model
from bipline.model.opening import open_checkpoint
from bipline.model.shapes import shape_of
from bipline.settings.line import AllocateSettings
from bipline.values.plan import BlockPlan, Budget, PruningPlan
from tests.command import run
from tests.compensated import REPEATED, put_in_place, realised
from tests.looped import by_the_stock_class, cached_tolerance, sliced_tolerance
from tests.masking import silence
from tests.tiny import CASES, config_of, tiny_model, token_windows

WINDOWS = token_windows(windows=2, seqlen=20)
BY_HEADS = {"attention": "query-heads"}
# Names with several query heads in a group, by whether a class holds the smaller model.
GROUPED = [
    case for case in CASES if shape_of(checked_config(config_of(case), case)).queries_per_group > 1
]
QUICK = {
    "llama-mqa", "llama-gqa-biased", "qwen2-gqa", "qwen3-gqa", "gemma2", "olmo2", "phi3",
    "mixtral", "cohere", "starcoder2",
}  # fmt: skip
ASKED = [pytest.param(case, marks=() if case in QUICK else pytest.mark.slow) for case in GROUPED]


def plan_of(checkpoint: Checkpoint, groups: int, queries: int, seed: int = 0) -> PruningPlan:
    """A plan that keeps drawn groups, drawn query heads of each, and most of the FFN."""
    generator, shape = torch.Generator().manual_seed(seed), checkpoint.shape

    def draw(count: int, held: int) -> tuple[int, ...]:
        return tuple(sorted(torch.randperm(held, generator=generator)[:count].tolist()))

    blocks = []
    for index in range(shape.num_hidden_layers):
        held = shape.block(index)
        kept = draw(groups, held.num_key_value_heads)
        # A first block without experts, beside others that have some, keeps its FFN.
        units = draw(held.ffn_units - (index >= shape.dense_blocks), held.ffn_units)
        block = BlockPlan.keeping(kept, units, bool(held.num_experts))
        heads = tuple(draw(queries, shape.queries_per_group) for _ in kept)
        blocks.append(block.model_copy(update={"query_heads": heads}))
    removed = removed_weights(checkpoint, blocks)
    reached = removed / shape.linear_weights
    budget = Budget(
        asked=reached, of="blocks", reached_blocks=reached,
        reached_total=removed / checkpoint.parameters,
    )  # fmt: skip
    return PruningPlan(
        tensor_digest=checkpoint.tensor_digest, criterion="random", allocation="uniform",
        budget=budget, ffn_multiple=1, blocks=tuple(blocks),
    )  # fmt: skip


def removed_weights(checkpoint: Checkpoint, blocks: Sequence[BlockPlan]) -> int:
    """Linear weights that go from all blocks."""
    return sum(
        Widths.of(block).removed_weights(checkpoint.shape.block(index))
        for index, block in enumerate(blocks)
    )


def counted(checkpoint: Checkpoint) -> int:
    """Linear weights of a model's blocks, counted from its tensors."""
    shapes = tensor_shapes(checkpoint.family, checkpoint.config, checkpoint.shape)
    return sum(
        prod(shape)
        for name, shape in shapes.items()
        if len(shape) > 1 and ".layers." in name and not name.endswith("bias")
    )


@pytest.mark.parametrize("case", ASKED)
def test_masked_logits_are_those_of_the_sliced_model(case: str, tmp_path: Path) -> None:
    """Loaded by transformers' stock class, run by the loop and with a cache."""
    source = tiny_model(tmp_path / "source", case)
    checkpoint = open_checkpoint(source)
    shape = checkpoint.shape
    plan = plan_of(checkpoint, shape.num_key_value_heads, shape.queries_per_group - 1)
    heads = shape.num_attention_heads - shape.num_key_value_heads
    if holding_class(checkpoint.config, heads) is None:
        with pytest.raises(InvalidInput, match=f"no transformers class holds .* {heads} heads"):
            prune(checkpoint, plan, tmp_path / "pruned")
        return
    prune(checkpoint, plan, tmp_path / "pruned")
    masked = load_model(source, torch.float64)
    silence(masked, checkpoint, plan.blocks)
    plain = by_the_stock_class(tmp_path / "pruned")
    with torch.no_grad():
        expected, found = masked(WINDOWS).logits, plain(WINDOWS).logits
        known = plain(WINDOWS[:, :9], use_cache=True).past_key_values
        rest = plain(WINDOWS[:, 9:], past_key_values=known).logits
    within = sliced_tolerance(plain.config)
    assert (found - expected).abs().max() < within
    cut = open_checkpoint(tmp_path / "pruned")
    assert (BlockLoop(cut, torch.float64).logits(WINDOWS) - expected).abs().max() < within
    tolerance = cached_tolerance(plain.config)
    torch.testing.assert_close(rest, expected[:, 9:], rtol=0, atol=tolerance)
    assert cut.shape.num_key_value_heads == shape.num_key_value_heads
    assert (cut.shape.num_attention_heads, cut.shape.head_dim) == (heads, shape.head_dim)
    removed = removed_weights(checkpoint, plan.blocks)
    assert counted(checkpoint) - counted(cut) == removed
    check_budget(checkpoint, plan)


def test_query_heads_are_counted_within_their_group() -> None:
    """Two of three groups, of four query heads of two channels each: one number at a time."""
    shape = shape_of(
        config_of("llama-gqa", num_attention_heads=12, num_key_value_heads=3, head_dim=2)
    )
    block = BlockPlan(attention_groups=(0, 2), ffn_channels=(1,), query_heads=((1, 3), (0, 2)))
    kept = kept_indices(block, shape)
    # Query heads 1 and 3 of the first group, 8 and 10 of all: those of the third.
    assert kept["query_heads"].tolist() == [2, 3, 6, 7, 16, 17, 20, 21]
    assert kept["kv_heads"].tolist() == [0, 1, 4, 5]


def test_groups_and_query_heads_go_together(tmp_path: Path) -> None:
    source = tiny_model(tmp_path / "source", "llama-gqa", num_attention_heads=16)
    checkpoint = open_checkpoint(source)
    plan = plan_of(checkpoint, groups=3, queries=2)
    first, second = (prune(checkpoint, plan, tmp_path / name) for name in ("pruned", "again"))
    assert first == second
    masked, sliced = (load_model(each, torch.float64) for each in (source, tmp_path / "pruned"))
    silence(masked, checkpoint, plan.blocks)
    with torch.no_grad():
        difference = (masked(WINDOWS).logits - sliced(WINDOWS).logits).abs().max()
    assert difference < 1e-10
    assert sliced.config.num_attention_heads == 6 and sliced.config.num_key_value_heads == 3
    told = removed_text(plan, (4, 40))
    assert "keeps 3 of 4 attention groups" in told and "of each group's query heads 2 stay" in told


def allocated(model: Path, ratio: float = 0.3, **asked: Any) -> PruningPlan:
    """The plan of an allocation that was asked for query heads, by the norms of columns."""
    checkpoint = open_checkpoint(model)
    scores = compute_scores(checkpoint, empty_statistics(checkpoint), "magnitude", Options())
    given = {"allocation": "uniform", "allocation_option": BY_HEADS, "ratio": ratio, **asked}
    return allocate(checkpoint, scores, AllocateSettings.model_validate(given), 0)


def test_the_best_query_heads_of_every_group_stay(tmp_path: Path) -> None:
    """Of all ways to keep as many heads of a group, by columns of o_proj read from the file."""
    source = tiny_model(tmp_path / "source", "llama-gqa", num_attention_heads=16)
    plan, shape = allocated(source), open_checkpoint(source).shape
    assert plan.allocation_options["attention"] == "query-heads"
    weights = load_file(source / "model.safetensors")
    for index, block in enumerate(plan.blocks):
        assert block.attention_groups == tuple(range(4))
        columns = weights[f"model.layers.{index}.self_attn.o_proj.weight"].norm(dim=0)
        norms = columns.view(4, 4, shape.head_dim).sum(2)
        # 0.3 of attention's weights are 1.5 of the four query heads of each group.
        best = [max(combinations(range(4), 2), key=lambda kept: norms[g, list(kept)].sum())
                for g in range(4)]  # fmt: skip
        assert list(block.query_heads) == best
    assert plan.budget.reached_blocks >= 0.3
    prune(open_checkpoint(source), plan, tmp_path / "pruned")
    masked, sliced = (load_model(each, torch.float64) for each in (source, tmp_path / "pruned"))
    silence(masked, open_checkpoint(source), plan.blocks)
    with torch.no_grad():
        assert (masked(WINDOWS).logits - sliced(WINDOWS).logits).abs().max() < 1e-10


def test_query_heads_go_beside_channels_of_every_expert(tmp_path: Path) -> None:
    """Where these alone cannot reach the ratio."""
    source = tiny_model(tmp_path / "source", "mixtral")
    checkpoint = open_checkpoint(source)
    plan = allocated(source, ratio=0.74, of_experts="channels")
    assert {block.queries_per_group for block in plan.blocks} == {1}
    assert all(block.expert_channels for block in plan.blocks)
    check_budget(checkpoint, plan)
    prune(checkpoint, plan, tmp_path / "pruned")
    masked = load_model(source, torch.float64)
    silence(masked, checkpoint, plan.blocks)
    sliced = load_model(tmp_path / "pruned", torch.float64)
    with torch.no_grad():
        assert (masked(WINDOWS).logits - sliced(WINDOWS).logits).abs().max() < 1e-10
    assert counted(checkpoint) - counted(open_checkpoint(tmp_path / "pruned")) == removed_weights(
        checkpoint, plan.blocks
    )


@pytest.mark.parametrize(
    ("case", "asked", "why"),
    [
        ("llama-mha", {}, "each of this model's 4 KV heads has one query head"),
        ("llama-gqa", {"layout": "per-layer"}, "in the uniform layout alone"),
        ("glm4-moe", {}, "all attention of a glm4_moe stays"),
        ("llama-gqa", {"allocation": "depth"}, "depth has no option 'attention'"),
        ("llama-gqa", {"allocation": "error-aware"}, "error-aware has no option 'attention'"),
        ("llama-gqa", {"allocation_option": {"attention": "heads"}}, "option attention=heads"),
        ("llama-gqa", {"ratio": 0.95}, "0.95 of the blocks cannot be reached"),
        (
            "llama-gqa",
            {"divisible_by": 3},
            "divisible_by 3: where query heads go all 4 KV heads stay",
        ),
        ("llama-mqa", {"divisible_by": 5}, "divisible_by 5: no count of 4 query heads divides"),
    ],
)
def test_query_heads_that_cannot_go(
    case: str, asked: dict[str, Any], why: str, tmp_path: Path
) -> None:
    """Refused before anything is scored, in a line that says what is so."""
    checkpoint = open_checkpoint(tiny_model(tmp_path / "source", case))
    given = {"allocation": "uniform", "allocation_option": BY_HEADS, "ratio": 0.3, **asked}
    with pytest.raises(InvalidInput, match=why):
        check_allocation(checkpoint, AllocateSettings.model_validate(given), "magnitude", {})


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (("--criterion", "magnitude", "--allocation", "uniform"), "has one query head"),
        (("--criterion", "auto"), "has one query head"),
        (("--criterion", "magnitude", "--allocation", "learned"), "learned has no option"),
    ],
)
def test_a_user_is_told_in_one_line(
    flags: tuple[str, ...], why: str, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    model = tiny_model(tmp_path / "source", "llama-mha")
    asked = ("--ratio", "0.3", "--allocation-option", "attention=query-heads", *flags)
    run(capfd, "prune", model, "--out", tmp_path / "out", *asked).assert_one_line(2, why)
    assert not (tmp_path / "out").exists()


def test_criteria_that_score_groups_alone_are_refused_by_name(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny_model(tmp_path / "source", "llama-gqa"))
    settings = AllocateSettings(allocation="uniform", allocation_option=BY_HEADS, ratio=0.3)
    for name in CRITERIA:
        if options_of(name).prunes != "groups":
            continue
        if name in ("flap", "llm-bip", "llm-bip-glu", "magnitude", "wanda-sp"):
            assert check_allocation(checkpoint, settings, name, {}) == "uniform"
            continue
        with pytest.raises(InvalidInput, match=f"criterion {name} scores attention groups and no"):
            check_allocation(checkpoint, settings, name, {})


def test_one_kv_head_no_longer_keeps_attention_whole(tmp_path: Path) -> None:
    source = tiny_model(tmp_path / "source", "llama-mqa")
    plan = allocated(source)
    assert {block.queries_per_group for block in plan.blocks} == {2} and plan.notes == ()
    few = allocated(source, ratio=0.02)
    assert not any(block.query_heads for block in few.blocks)
    assert "every group keeps all of them, and the FFN takes" in few.notes[0]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"query_heads": ((0,), (1,), (0,), (2,))}, "keeps a query head that block 1 does not"),
        ({"query_heads": ()}, "blocks differ in width"),
    ],
)
def test_query_heads_that_are_not_there_or_differ_by_block(
    change: dict[str, tuple[tuple[int, ...], ...]], why: str, tmp_path: Path
) -> None:
    checkpoint = open_checkpoint(tiny_model(tmp_path / "source", "llama-gqa"))
    plan = plan_of(checkpoint, groups=4, queries=1)
    blocks = (plan.blocks[0], plan.blocks[1].model_copy(update=change))
    with pytest.raises(InvalidInput, match=why):
        check_plan(checkpoint, plan.model_copy(update={"blocks": blocks}))


# Where a norm lies over all heads, behind sublayers, where matrices are fused, one KV head, biases.
CORRECTED = [
    ("llama-gqa", "obs"), ("llama-gqa", "least-squares"), ("llama-gqa-biased", "bias"),
    *(pytest.param(*each, marks=pytest.mark.slow) for each in (
        ("llama-mqa", "obs"), ("llama-gqa", "osscar"), ("llama-gqa", "slimgpt"), ("olmo2", "obs"),
        ("gemma2", "obs"), ("phi3", "obs"), ("qwen3-gqa", "obs"), ("cohere", "obs"),
        ("starcoder2", "obs"),
    )),
]  # fmt: skip


@pytest.mark.parametrize(("case", "compensation"), CORRECTED)
def test_corrected_logits_are_those_of_the_sliced_model(
    case: str, compensation: str, tmp_path: Path
) -> None:
    """Transformers' dense model with the corrections in place, and what was written."""
    different = {"num_attention_heads": 16} if case.startswith("llama-gqa") else {}
    source = tiny_model(tmp_path / "source", case, **different)
    checkpoint = open_checkpoint(source)
    shape = checkpoint.shape
    kept = max(1, shape.queries_per_group - 2)
    asked = plan_of(checkpoint, shape.num_key_value_heads, kept)
    plan, held = realised(checkpoint, asked, tmp_path, compensation, REPEATED)
    prune(checkpoint, plan, tmp_path / "pruned", corrections=held)
    check_budget(checkpoint, plan)
    assert {block.queries_per_group for block in plan.blocks} == {kept}
    inside = {name for index in held.blocks for name in held.shapes(index)}
    assert "self_attn.o_proj.weight" in inside or compensation == "bias"
    masked, sliced = (
        load_model(source, torch.float64),
        load_model(tmp_path / "pruned", torch.float64),
    )
    put_in_place(masked, checkpoint, plan, held)
    silence(masked, checkpoint, plan.blocks)
    with torch.no_grad():
        difference = (masked(WINDOWS).logits - sliced(WINDOWS).logits).abs().max()
    assert difference < 1e-10
    loop = BlockLoop(open_checkpoint(tmp_path / "pruned"), torch.float64)
    assert (loop.logits(WINDOWS) - masked(WINDOWS).logits).abs().max() < 1e-10


def test_per_layer_plans_list_no_query_heads(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny_model(tmp_path / "source", "llama-gqa"))
    plan = plan_of(checkpoint, groups=4, queries=1).model_copy(update={"layout": "per-layer"})
    with pytest.raises(InvalidInput, match="the uniform layout alone can hold"):
        check_plan(checkpoint, plan)
