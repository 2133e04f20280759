"""Scores of experts against direct definitions, token by token, on transformers' own modules."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bipline.compression.allocate import allocate
from bipline.compression.criteria.interface import Options
from bipline.compression.prune import prune
from bipline.compression.score import compute_scores
from bipline.model.families import build_of
from bipline.model.loading import load_model
from bipline.model.opening import open_checkpoint
from bipline.settings.line import AllocateSettings
from tests.routed import with_unused_expert
from tests.scored import WINDOWS, assert_same_scores, scored
from tests.tiny import EXPERT_CASES, tiny_model

BLOCK = 1


@pytest.fixture(scope="module", params=EXPERT_CASES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("experts") / request.param, request.param)


@torch.no_grad()
def seen(model: Path) -> tuple[Any, dict[str, Tensor]]:
    """A decoder block of transformers, and what enters its FFN and its o_proj, by tokens."""
    layer = load_model(model, torch.float64)
    found: dict[str, Tensor] = {}
    block = layer.model.layers[BLOCK]
    for name, module in (
        ("ffn", block.mlp),
        ("attention", block.self_attn.o_proj),
        ("residual", block.post_attention_layernorm),
    ):
        module.register_forward_pre_hook(
            lambda _module, inputs, name=name: found.update({name: inputs[0].flatten(0, 1)})
        )
    layer(WINDOWS)
    return block, found


def routed(block: Any, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """The router's weights of the experts that each token passes through, and which these are."""
    router = block.mlp.router if hasattr(block.mlp, "router") else block.mlp.gate
    _, weights, chosen = router(hidden)
    return weights, chosen


def added(block: Any, hidden: Tensor) -> Tensor:
    """What the FFN adds, ``[tokens, d]``."""
    found = block.mlp(hidden[None])
    return (found[0] if isinstance(found, tuple) else found)[0]


def transposed(block: Any) -> bool:
    """Whether its experts' matrices are multiplied from the right (gpt-oss)."""
    return hasattr(block.mlp.experts, "gate_up_proj_bias")


def down_of(block: Any, expert: int) -> Tensor:
    """down_proj of one, ``[d, f]``, no copy."""
    matrix = block.mlp.experts.down_proj[expert]
    return matrix.T if transposed(block) else matrix


def firsts_of(block: Any, expert: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """gate and up of one, ``[f, d]``, and their biases."""
    experts = block.mlp.experts
    matrix = experts.gate_up_proj[expert]
    if transposed(block):
        bias = experts.gate_up_proj_bias[expert]
        return matrix[:, ::2].T, matrix[:, 1::2].T, bias[::2], bias[1::2]
    gate, up = matrix.chunk(2)
    return gate, up, gate.new_zeros(len(gate)), gate.new_zeros(len(gate))


def inner(block: Any, gate: Tensor, up: Tensor) -> Tensor:
    """What enters down_proj, by the class's own arithmetic where it has a name for it."""
    experts = block.mlp.experts
    if transposed(block):
        return experts._apply_gate(torch.stack([gate, up], -1).flatten(-2))
    return experts.act_fn(gate) * up


@torch.no_grad()
def test_an_experts_score_is_how_far_the_output_moves_without_what_it_adds(model: Path) -> None:
    """The mean over the tokens that it sees; the router and all other experts stay."""
    block, entered = seen(model)
    _, chosen = routed(block, entered["ffn"])
    output, experts = added(block, entered["ffn"]), block.mlp.experts
    parts = [held for name, held in experts.named_parameters() if name.startswith("down")]
    found = scored(model, "llm-bip")[1].blocks[BLOCK]
    assert found.experts is not None and found.expert_tokens is not None
    for expert, score in enumerate(found.experts):
        whole = [part[expert].clone() for part in parts]
        for part in parts:
            part[expert] = 0
        moved = (added(block, entered["ffn"]) - output).norm(dim=1)
        for part, held in zip(parts, whole, strict=True):
            part[expert] = held
        sees = (chosen == expert).any(1)
        assert found.expert_tokens[expert] == sees.sum()
        assert float(moved[~sees].abs().sum()) == 0
        torch.testing.assert_close(score, moved.sum() / sees.sum().clamp(min=1), rtol=1e-6, atol=0)


@torch.no_grad()
def moved_by_channels(model: Path) -> dict[str, Tensor]:
    """By what there is of every channel: the root mean square of how far the output moves.

    Of each expert over the tokens that it sees, with the columns of down_proj zeroed one by one;
    of what all tokens share, where there is some. An expert that sees none counts by its columns.
    """
    block, entered = seen(model)
    _, chosen = routed(block, entered["ffn"])
    output, experts = added(block, entered["ffn"]), range(len(block.mlp.experts.down_proj))
    matrices = {str(expert): down_of(block, expert) for expert in experts}
    if shared := getattr(block.mlp, "shared_experts", None):
        matrices["shared"] = shared.down_proj.weight
    found = {}
    for name, matrix in matrices.items():
        rows = (chosen == int(name)).any(1) if name != "shared" else torch.ones(len(output)) > 0
        if not bool(rows.any()):
            found[name] = matrix.norm(dim=0)
            continue
        moved = []
        for column in range(matrix.shape[1]):
            held = matrix[:, column].clone()
            matrix[:, column] = 0
            change = (added(block, entered["ffn"]) - output)[rows]
            moved.append(change.square().sum(1).mean().sqrt())
            matrix[:, column] = held
        found[name] = torch.stack(moved)
    return found


@pytest.mark.parametrize("criterion", ["llm-bip", "llm-bip-glu"])
def test_every_expert_keeps_the_channels_that_move_the_output_most(
    model: Path, criterion: str
) -> None:
    """As many of each, whatever they are in other experts; found by trying every one."""
    moved = moved_by_channels(model)
    checkpoint, scores = open_checkpoint(model), scored(model, criterion)[1]
    inside, shared = scores.blocks[BLOCK].expert_channels, scores.blocks[BLOCK].shared_channels
    assert inside is not None
    asked = AllocateSettings(ratio=0.2, of_experts="channels")
    for expert, each in enumerate(inside):
        torch.testing.assert_close(each, moved[str(expert)], rtol=1e-6, atol=0)
    plan = allocate(checkpoint, scores, asked, 0).blocks[BLOCK]
    count = plan.channels_per_expert
    assert count and len(plan.expert_channels) == checkpoint.shape.num_experts
    for expert, channels in enumerate(plan.expert_channels):
        best = moved[str(expert)].topk(count).indices.sort().values
        assert channels == tuple(best.tolist())
    assert len(set(plan.expert_channels)) > 1
    if shared is None:
        assert "shared" not in moved and not plan.shared_channels
        return
    torch.testing.assert_close(shared, moved["shared"], rtol=1e-6, atol=0)
    best = moved["shared"].topk(count * checkpoint.shape.shared_experts).indices.sort().values
    assert plan.shared_channels == tuple(best.tolist())


@torch.no_grad()
def test_attention_counts_what_the_gates_of_experts_let_through(model: Path) -> None:
    """llm-bip-glu by its formula, with slopes by differentiation."""
    block, entered = seen(model)
    hidden, norm = entered["ffn"], block.post_attention_layernorm
    weights, chosen = routed(block, hidden)
    parts = []
    for expert in range(len(block.mlp.experts.down_proj)):
        taken = torch.where(chosen == expert, weights, 0).sum(1).double()
        parts.append((*firsts_of(block, expert), down_of(block, expert), taken))
    if shared := getattr(block.mlp, "shared_experts", None):
        gate, up, down = (getattr(shared, f"{name}_proj").weight for name in ("gate", "up", "down"))
        zeros, ones = gate.new_zeros(len(gate)), hidden.new_ones(len(hidden))
        parts.append((gate, up, zeros, zeros, down, ones))
    through = torch.zeros(hidden.shape[1], dtype=torch.float64)
    for gate, up, of_gate, of_up, down, taken in parts:
        reach, p, q = down.abs().sum(0), hidden @ gate.T + of_gate, hidden @ up.T + of_up
        with torch.enable_grad():
            points = [each.clone().requires_grad_() for each in (p, q)]
            slopes = torch.autograd.grad(inner(block, *points).sum(), points)
        c_gate, c_up = ((taken[:, None] * each).square().mean(0).sqrt() for each in slopes)
        through += up.abs().T @ (c_up * reach) + gate.abs().T @ (c_gate * reach)
    inverse = entered["residual"].square().mean(1).rsqrt().mean()
    matrix = block.self_attn.o_proj.weight
    propagated = 1 + norm.weight.abs() * inverse * through
    channels = entered["attention"].square().mean(0).sqrt() * (matrix.abs().T @ propagated)
    found = scored(model, "llm-bip-glu")[1].blocks[BLOCK].attention_groups
    expected = channels.view(len(found), -1).sum(1)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


@torch.no_grad()
def test_the_other_criteria_are_their_definitions(model: Path) -> None:
    block, entered = seen(model)
    weights, chosen = routed(block, entered["ffn"])
    hidden, experts = entered["ffn"], range(len(block.mlp.experts.down_proj))
    rms = entered["attention"].square().mean(0).sqrt()
    matrix = block.self_attn.o_proj.weight
    reach = torch.ones(len(matrix), dtype=torch.float64)
    wanda, magnitude, inside = [], [], []
    if shared := getattr(block.mlp, "shared_experts", None):
        down = shared.down_proj.weight
        reach += shared.up_proj.weight.abs().T @ (down.abs().T @ torch.ones(len(down)).double())
    for expert in experts:
        (gate, up, of_gate, of_up), down = firsts_of(block, expert), down_of(block, expert)
        taken = torch.where(chosen == expert, weights, 0).sum(1).double()
        inputs = inner(block, hidden @ gate.T + of_gate, hidden @ up.T + of_up)
        inputs = taken[:, None] * inputs
        reach += taken.mean() * (up.abs().T @ (down.abs().T @ torch.ones(len(down)).double()))
        wanda.append((inputs.square().mean(0).sqrt() * down.abs().mean(0)).sum())
        magnitude.append(down.norm(dim=0).sum())
        sees = (chosen == expert).any(1)
        size = inputs[sees].square().mean(0).sqrt() if bool(sees.any()) else 1
        inside.append(size * down.abs().mean(0))
    channels = rms * (matrix.abs().T @ reach)
    found = {
        name: scored(model, name)[1].blocks[BLOCK] for name in ("llm-bip", "wanda-sp", "magnitude")
    }
    groups = channels.view(len(found["llm-bip"].attention_groups), -1).sum(1)
    for value, expected in (
        (found["llm-bip"].attention_groups, groups),
        (found["wanda-sp"].experts, torch.stack(wanda)),
        (found["magnitude"].experts, torch.stack(magnitude)),
        (found["wanda-sp"].expert_channels, torch.stack(inside)),
        (
            found["magnitude"].expert_channels,
            torch.stack([down_of(block, expert).norm(dim=0) for expert in experts]),
        ),
    ):
        torch.testing.assert_close(value, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("case", ["mixtral"])
def test_an_expert_that_saw_no_token_is_told_and_goes_first(case: str, tmp_path: Path) -> None:
    model = with_unused_expert(tiny_model(tmp_path / "model", case), 5)
    checkpoint = open_checkpoint(model)
    scores = scored(model, "llm-bip")[1]
    assert [float(block.experts[5]) for block in scores.blocks if block.experts is not None] == [
        0,
        0,
    ]
    plan = allocate(checkpoint, scores, AllocateSettings(ratio=0.1), 0)
    assert all(set(block.experts) == {0, 1, 2, 3, 4, 6, 7} for block in plan.blocks)
    assert any("sent to experts 5 of block 0; 5 of block 1" in note for note in plan.notes)
    assert any("keeps 7 of 8" in note for note in plan.notes)


@pytest.mark.parametrize("criterion", ["llm-bip", "wanda-sp"])
def test_an_expert_that_saw_no_token_keeps_channels_by_its_weights(
    criterion: str, tmp_path: Path
) -> None:
    """As if all that enters its down_proj were of mean square 1; and it is told."""
    model = with_unused_expert(tiny_model(tmp_path / "model", "mixtral"), 5)
    checkpoint, scores = open_checkpoint(model), scored(model, criterion)[1]
    asked = AllocateSettings(ratio=0.3, of_experts="channels")
    plan = allocate(checkpoint, scores, asked, 0)
    told = [note for note in plan.notes if "sent to experts 5 of block 0; 5 of block 1" in note]
    assert told and "the weights alone say which channels they keep" in told[0]
    for index, block in enumerate(plan.blocks):
        down = checkpoint.block_weights(index)["mlp.experts.down_proj"][5]
        norms = down.norm(dim=0) if criterion == "llm-bip" else down.abs().mean(0)
        best = norms.topk(block.channels_per_expert or 0).indices.sort().values
        assert block.expert_channels[5] == tuple(best.tolist())
        assert block.experts == tuple(range(8))


def test_a_router_loses_the_rows_of_its_experts(model: Path, tmp_path: Path) -> None:
    """And what stays lies on disk as it lay, under the numbers that are left."""
    checkpoint = open_checkpoint(model)
    scores = scored(model, "magnitude")[1]
    plan = allocate(checkpoint, scores, AllocateSettings(ratio=0.2), 0)
    prune(checkpoint, plan, tmp_path / "pruned")
    pruned = open_checkpoint(tmp_path / "pruned")
    transposed_ = build_of(checkpoint.family).transposed_experts
    assert pruned.shape.num_experts < checkpoint.shape.num_experts
    for name in pruned.tensors:
        block, expert = (re.search(rf"{part}[.](\d+)[.]", name) for part in ("layers", "experts"))
        kept = plan.blocks[int(block[1])].experts if block else ()
        stacked = transposed_ and ".mlp." in name
        source = name
        if expert:
            source = name.replace(expert[0], f"experts.{kept[int(expert[1])]}.")
        expected = checkpoint.tensor(source)
        router = ".gate." in name or stacked
        assert pruned.tensor(name).equal(expected[list(kept)] if router else expected)


def test_scores_are_the_same_from_the_sums_of_another_criterion(
    model: Path, tmp_path: Path
) -> None:
    """And from a run that keeps what it finished."""
    whole = scored(model, "llm-bip")[1]
    statistics, _ = scored(model, "wanda-sp", work=tmp_path)
    again = compute_scores(open_checkpoint(model), statistics, "llm-bip", Options())
    assert_same_scores(again, whole)
    for one, other in zip(again.blocks, whole.blocks, strict=True):
        assert one.ffn_units.equal(other.ffn_units)


@torch.no_grad()
def test_a_block_without_its_ffn_is_one_without_its_experts(model: Path) -> None:
    """Depth is scored of a mixture too: by losses, against zeros in every down_proj of a block."""
    windows = WINDOWS[:4]
    scores = scored(model, "block-shapley", windows=windows, of="sublayers")[1].blocks
    first, second = (each.ffn_units for each in scores[-2:])
    assert first.unique().numel() == second.unique().numel() == 1
    built, losses = load_model(model, torch.float64), []
    for layer in built.model.layers:
        held = {name: each.clone() for name, each in layer.mlp.named_parameters() if "down" in name}
        for name in held:
            layer.mlp.get_parameter(name).zero_()
        losses.append(float(built(windows, labels=windows).loss))
        for name, matrix in held.items():
            layer.mlp.get_parameter(name).copy_(matrix)
    # Of all n single deletions: n / (n - 1) times the change, less what all have in common.
    count = 2 * len(losses)
    expected = (losses[-2] - losses[-1]) * count / (count - 1)
    assert float(first[0] - second[0]) == pytest.approx(expected, rel=1e-3)


def test_attention_loses_its_share_by_standardized_scores(model: Path) -> None:
    """Where one unit is worth less than another, whichever kind it is of."""
    checkpoint = open_checkpoint(model)
    scores = scored(model, "wanda-sp")[1]
    # Of this one's experts more go before a group is worth less than they are.
    ratio = 0.45 if model.name == "gpt-oss" else 0.3
    asked = AllocateSettings(ratio=ratio, allocation="standardized")
    plan = allocate(checkpoint, scores, asked, 0)
    assert plan.budget.reached_blocks >= ratio
    groups = {len(block.attention_groups) for block in plan.blocks}
    whole = checkpoint.shape.num_key_value_heads
    stays = whole == 1 or checkpoint.shape.dense_blocks > 0
    assert len(groups) == 1 and (groups == {whole}) == stays
