"""Query heads that go from every group: sliced as masked, in every class that can hold it."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from bipline.base.errors import InvalidInput
from bipline.compression.allocation.widths import Widths
from bipline.compression.prune import check_budget, check_plan, prune
from bipline.compression.slicing import kept_indices
from bipline.delivery.card import removed_text
from bipline.model.block_loop import BlockLoop
from bipline.model.checkpoint import Checkpoint
from bipline.model.families import holding_class, tensor_shapes
from bipline.model.loading import load_model
from bipline.model.opening import open_checkpoint
from bipline.model.shapes import shape_of
from bipline.settings.line import LineSettings
from bipline.stages import compensate
from bipline.values.plan import BlockPlan, Budget, PruningPlan
from tests.looped import cached_tolerance, sliced_tolerance
from tests.masking import silence
from tests.tiny import CASES, config_of, tiny_model, token_windows

WINDOWS = token_windows(windows=2, seqlen=20)
# Names with several query heads in a group, by whether a class holds the smaller model.
GROUPED = [
    case
    for case in CASES
    if shape_of({"num_key_value_heads": None, **config_of(case)}).queries_per_group > 1
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
    plain = AutoModelForCausalLM.from_pretrained(
        tmp_path / "pruned", dtype=torch.float64, experts_implementation="eager"
    ).eval()
    assert type(plain).__module__.startswith("transformers.models.")
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


def test_a_compensation_refuses_a_plan_that_lists_query_heads(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny_model(tmp_path / "source", "llama-gqa"))
    plan = plan_of(checkpoint, groups=4, queries=1)
    place = tmp_path / "plan.json"
    place.write_text(plan.to_json(), encoding="utf-8")
    settings = LineSettings.model_validate(
        {
            "model": str(tmp_path / "source"), "allocate": {"plan": str(place)},
            "compensate": {"compensation": "obs"},
        }
    )  # fmt: skip
    with pytest.raises(InvalidInput, match="obs is of whole attention groups"):
        compensate.check(settings, None, thorough=False)


def test_per_layer_plans_list_no_query_heads(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny_model(tmp_path / "source", "llama-gqa"))
    plan = plan_of(checkpoint, groups=4, queries=1).model_copy(update={"layout": "per-layer"})
    with pytest.raises(InvalidInput, match="the uniform layout alone can hold"):
        check_plan(checkpoint, plan)
