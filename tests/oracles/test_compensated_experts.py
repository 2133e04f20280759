"""Compensated mixtures: the fit against brute force, and corrected models sliced as masked."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bipline.base.errors import InvalidInput
from bipline.compression.compensation import progress
from bipline.compression.compensation.expert_fit import ExpertSquares
from bipline.compression.compensation.options import CompensationOptions
from bipline.compression.compensation.streams import Batch
from bipline.compression.compensation.versions import PrunedBlock
from bipline.compression.computing import Computing
from bipline.compression.prune import prune
from bipline.compression.windows import Windows
from bipline.model.block_loop import BlockLoop
from bipline.model.checkpoint import Checkpoint
from bipline.model.halves import Halves
from bipline.model.loading import load_model
from bipline.model.opening import open_checkpoint
from bipline.values.plan import BlockPlan
from tests.command import contents
from tests.compensated import put_in_layer, realised
from tests.corrections import corrected, draw
from tests.masking import layers_of, silence
from tests.oracles.test_expert_scores import added, firsts_of, inner, transposed
from tests.per_layer import plan_of
from tests.routed import kept_of_experts, put_experts, without_experts
from tests.tiny import EXPERT_CASES, tiny_model, token_windows

TOKEN_IDS = token_windows(windows=2, seqlen=12)
# Each there twice, so that what is fitted bears out on what is held out.
WINDOWS = Windows(token_windows(10, 24, seed=5).repeat(2, 1), "twice", Computing(torch.float64))
BLOCK, RIDGE = 1, 0.02
# Both ways of cutting, in every kind of mixture.
CUTS = [
    (case, ways)
    for case in ("mixtral", "qwen3-moe", "glm4-moe", "gpt-oss")
    for ways in ("whole", "channels")
]
FEW = [("mixtral", "channels"), ("glm4-moe", "whole"), ("gpt-oss", "channels")]
MARKED = [pytest.param(*cut, marks=() if cut in FEW else pytest.mark.slow) for cut in CUTS]


@pytest.fixture
def opened(case: str, tmp_path: Path) -> Checkpoint:
    return open_checkpoint(tiny_model(tmp_path / "model", case))


def tolerance(case: str) -> float:
    """That of a router which computes in float32, whatever the model does."""
    return 1e-5 if case.startswith("glm4") else 1e-10


def wide_inputs(layer: Any, plan: BlockPlan, hidden: Tensor) -> Tensor:
    """What enters every kept column, ``[tokens, total]``, by transformers' own modules.

    The router must know already which experts are there.
    """
    mlp, biased = layer.mlp, transposed(layer)
    router = mlp.router if hasattr(mlp, "router") else mlp.gate
    _, weights, chosen = router(hidden)
    columns = []
    for place, expert in enumerate(plan.experts):
        gate, up, gate_bias, up_bias = firsts_of(layer, expert)
        entering = inner(layer, hidden @ gate.T + gate_bias, hidden @ up.T + up_bias)
        if plan.expert_channels:
            entering = entering[:, list(plan.expert_channels[place])]
        counts = torch.where(chosen == expert, weights, 0).sum(1, keepdim=True).to(hidden)
        columns.append(torch.cat([entering * counts, *([counts] if biased else [])], 1))
    if hasattr(mlp, "shared_experts"):
        shared = mlp.shared_experts
        entering = shared.act_fn(shared.gate_proj(hidden)) * shared.up_proj(hidden)
        kept = plan.shared_channels or range(entering.shape[1])
        columns.append(entering[:, list(kept)])
    return torch.cat(columns, 1)


def drawn_batches(width: int) -> list[Batch]:
    """Streams that have nothing to do with each other, in micro-batches."""
    drawn = [draw(3, 3, 20, width, seed=seed) for seed in range(3)]
    return [Batch(reads, reads + adds, target) for reads, adds, target in zip(*drawn, strict=True)]


def squares_of(
    checkpoint: Checkpoint, plan: BlockPlan, batches: list[Batch], **more: Any
) -> tuple[ExpertSquares, PrunedBlock]:
    block = BlockLoop(checkpoint, torch.float64).block(BLOCK)
    pruned = PrunedBlock(checkpoint, block, plan)

    def given(first: int) -> Iterator[Batch]:
        return iter(batches[first:])

    squares = ExpertSquares(pruned.experts_half(), pruned.dense, given, True, **more)
    return squares, pruned


@pytest.mark.parametrize(("case", "ways"), CUTS)
@torch.no_grad()
def test_the_solution_is_that_of_least_squares_over_all_columns_at_once(
    case: str, ways: str, opened: Checkpoint
) -> None:
    """Stacked token by token in float64, by transformers' own block, and solved directly."""
    plan = kept_of_experts(opened, ways).blocks[BLOCK]
    batches = drawn_batches(opened.shape.hidden_size)
    squares, pruned = squares_of(opened, plan, batches, steps=200)
    reads, adds_to, target = zip(*batches, strict=True)
    adds_to, target = (torch.cat(each).flatten(0, 1) for each in (adds_to, target))
    layer = layers_of(load_model(Path(str(opened.location)), torch.float64))[BLOCK]
    hidden = layer.post_attention_layernorm(torch.cat(reads)).flatten(0, 1)
    dense = added(layer, hidden)
    if ways == "whole":
        router = layer.mlp.router if hasattr(layer.mlp, "router") else layer.mlp.gate
        without_experts(router, torch.tensor(plan.experts))
    x, wide = wide_inputs(layer, plan, hidden), pruned.experts_sublayer().weight
    weights = 1 / (target.square().mean(1, keepdim=True) + opened.rms_norm_eps)
    moments = x.T @ (weights * x)
    lifted = moments + RIDGE * moments.diagonal().mean() * torch.eye(
        len(moments), dtype=torch.float64
    )
    for found, left in zip(
        squares.solve(RIDGE), (dense - x @ wide.T, target - adds_to - dense), strict=True
    ):
        assert found is not None
        expected = torch.linalg.solve(lifted, x.T @ (weights * left)).T
        torch.testing.assert_close(found.weight, expected, rtol=0, atol=1e-8)
    left = dense - x @ wide.T + 0.25 * (target - adds_to - dense)
    expected = torch.linalg.solve(lifted, x.T @ (weights * left)).T
    blended = squares.blended(RIDGE, 0.25).weight
    torch.testing.assert_close(blended, expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("case", ["mixtral"])
def test_the_solution_does_not_depend_on_what_is_held(opened: Checkpoint) -> None:
    plan = kept_of_experts(opened, "whole").blocks[BLOCK]
    batches = drawn_batches(opened.shape.hidden_size)
    found = [
        squares_of(opened, plan, batches, room=room)[0].solve(RIDGE)[0].weight
        for room in (0, 40_000, math.inf)
    ]
    assert found[0].equal(found[1])
    assert found[0].equal(found[2])


@pytest.mark.parametrize("case", ["qwen3-moe"])
def test_an_expert_that_sees_no_token_stays_as_it_is(opened: Checkpoint) -> None:
    plan = kept_of_experts(opened, "whole").blocks[BLOCK]
    batches = [Batch(*(each[:1, :1] for each in batch)) for batch in drawn_batches(32)[:1]]
    squares, pruned = squares_of(opened, plan, batches)
    half = pruned.experts_half()
    seen = half.mixture.routed(half.ffn_input(batches[0].reads).flatten(0, 1))[0].unique().tolist()
    own, drift = squares.solve(RIDGE)
    assert drift is not None
    for expert, place in enumerate(half.mixture.columns.places):
        for each in (own, drift):
            assert bool(each.weight[:, place].any()) == (expert in seen)
    assert len(seen) < len(plan.experts)


@pytest.mark.parametrize("case", list(EXPERT_CASES))
@torch.no_grad()
def test_halves_run_experts_as_their_class_does(case: str, opened: Checkpoint) -> None:
    loop = BlockLoop(opened, torch.float64)
    hidden = loop.embed(TOKEN_IDS)
    for block in loop.blocks():
        expected = block.run(hidden)
        torch.testing.assert_close(Halves.of(block).run(hidden), expected, rtol=0, atol=1e-12)
        hidden = expected


@pytest.mark.parametrize("case", ["gpt-oss", "gpt-oss-plain"])
@torch.no_grad()
def test_attention_weights_beside_sinks_mix_values_as_attention_does(opened: Checkpoint) -> None:
    """Of windows longer than those that slide, so that masks hide more than later tokens."""
    loop = BlockLoop(opened, torch.float64)
    hidden = loop.embed(token_windows(windows=2, seqlen=20))
    for block in loop.blocks():
        halves = Halves.of(block)
        normed = halves.attention_input(hidden)
        held = (halves.weights.get(f"self_attn.v_proj.{name}") for name in ("weight", "bias"))
        values = torch.nn.functional.linear(normed, *held)
        weights = halves.attention_weights(normed)
        each = values.unflatten(2, (-1, halves.head_dim)).transpose(1, 2)
        mixed = weights @ each.repeat_interleave(weights.shape[1] // each.shape[1], 1)
        found = mixed.transpose(1, 2).flatten(2)
        torch.testing.assert_close(found, halves.attention_output(hidden), rtol=0, atol=1e-10)
        assert float(weights.sum(-1).max()) < 1, "sinks take their share"


@pytest.mark.parametrize(("case", "ways"), MARKED)
def test_a_corrected_model_is_sliced_as_masked_and_errors_never_rise(
    case: str, ways: str, opened: Checkpoint, tmp_path: Path
) -> None:
    asked = kept_of_experts(opened, ways)
    plan, held = realised(opened, asked, tmp_path, "least-squares", WINDOWS, random_windows=0.0)
    prune(opened, plan, tmp_path / "out", corrections=held)
    masked = load_model(tmp_path / "model", torch.float64)
    silence(masked, opened, plan.blocks)
    fitted = set()
    for index in held.blocks:
        tensors = {name: held.tensor(index, name) for name in held.shapes(index)}
        fitted |= tensors.keys()
        rest = put_experts(layers_of(masked)[index], plan.blocks[index], tensors)
        put_in_layer(layers_of(masked)[index], opened, plan.blocks[index], rest)
    assert any("experts" in name for name in fitted)
    # Of gpt-oss too, whose attention has sinks: rows of v_proj behind its attention weights.
    # Where its experts lose channels held-out windows do not bear these out.
    rows = {"self_attn.v_proj.weight"} if (case, ways) != ("gpt-oss", "channels") else set()
    assert {"self_attn.o_proj.weight"} | rows <= fitted
    with torch.no_grad():
        expected = load_model(tmp_path / "out", torch.float64)(TOKEN_IDS).logits
        found = masked(TOKEN_IDS).logits
    assert float((found - expected).abs().max()) < tolerance(case)
    record = plan.compensated
    assert record is not None
    for block in record.blocks:
        assert block.error <= block.error_without
        assert block.ffn is not None
        assert block.ffn.least <= block.ffn.errors["none"]
    assert record.error < record.error_without


@pytest.mark.parametrize(
    ("case", "ways"), [("glm4-moe", "channels"), pytest.param("gpt-oss", "whole")]
)
def test_replayed_and_killed_to_the_same_bytes(
    case: str, ways: str, opened: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = kept_of_experts(opened, ways)
    plan, held = realised(opened, asked, tmp_path / "whole", "least-squares", WINDOWS)
    prune(opened, plan, tmp_path / "first", corrections=held)
    prune(open_checkpoint(tmp_path / "model"), plan, tmp_path / "second", corrections=held)
    assert contents(tmp_path / "first") == contents(tmp_path / "second")
    saved = progress.FolderProgress.save

    def dying(self: progress.FolderProgress, correction: Any) -> None:
        saved(self, correction)
        if correction.record.index == BLOCK:
            raise KeyboardInterrupt

    (tmp_path / "killed").mkdir()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(progress.FolderProgress, "save", dying)
        realised(opened, asked, tmp_path / "killed", "least-squares", WINDOWS)
    again, _ = realised(opened, asked, tmp_path / "killed", "least-squares", WINDOWS)
    assert again == plan
    both = [contents(tmp_path / name / "corrections") for name in ("whole", "killed")]
    assert both[0] == both[1]


@pytest.mark.parametrize("case", ["mixtral"])
def test_experts_that_all_stay_are_fitted_only_where_that_is_asked_for(opened: Checkpoint) -> None:
    whole = kept_of_experts(opened, "none")
    for asked in (False, True):
        found = corrected(
            opened, whole, "least-squares", WINDOWS.token_ids, whole_matrices=asked,
            random_windows=0.0, generated_windows=0.0,
        )  # fmt: skip
        tried = ["least-squares" in each.record.ffn.errors for each in found if each.record.ffn]
        assert tried == [asked, asked]


@pytest.mark.parametrize("case", ["mixtral"])
def test_a_block_that_goes_has_nothing_to_correct(opened: Checkpoint) -> None:
    blocks = kept_of_experts(opened, "none").blocks
    gone = blocks[0].model_copy(update={"attention_groups": (), "experts": ()})
    plan = plan_of(opened, [gone, blocks[1]], "uniform")
    first, second = corrected(
        opened, plan, "least-squares", WINDOWS.token_ids, generated_windows=0.0
    )
    assert not first.tensors
    assert first.record.attention is None
    assert first.record.ffn is None
    assert first.record.error == first.record.error_without
    assert second.record.error <= second.record.error_without


@pytest.mark.parametrize("case", ["mixtral"])
def test_too_few_tokens_name_how_many_an_expert_needs(opened: Checkpoint) -> None:
    plan, options = kept_of_experts(opened, "whole"), CompensationOptions()
    windows = token_windows(windows=12, seqlen=24)
    said = "40 columns of experts that see 2 of 8 tokens on 264 tokens; it needs 320, .* 16 samples"
    with pytest.raises(InvalidInput, match=said):
        corrected(opened, plan, "least-squares", windows, **options.model_dump())
