"""Published compensations: osscar by brute force, slimgpt by explicit inverses; nothing of ours."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from bipline.base.errors import InvalidInput
from bipline.compression.compensation.checks import options_by_name
from bipline.compression.compensation.drawn_windows import divided_with_drawn
from bipline.compression.compensation.engine import compensate
from bipline.compression.compensation.slimgpt import kept_in_batches
from bipline.compression.compensation.triangles import Triangles
from bipline.compression.computing import Computing
from bipline.model.block_loop import BlockLoop
from bipline.model.checkpoint import Checkpoint
from bipline.model.halves import DOWN_PROJ, O_PROJ, Halves
from bipline.model.opening import open_checkpoint
from tests.corrections import WINDOWS, narrowed
from tests.tiny import tiny_model

COMPUTING = Computing(torch.float64)
RIDGE = 0.03


def left(weight: Tensor, second: Tensor, kept: Tensor) -> tuple[float, Tensor]:
    """What the best weights of some columns leave, and these weights."""
    others = torch.tensor([n for n in range(len(second)) if n not in set(kept.tolist())])
    solved = torch.linalg.solve(second[kept][:, kept], second[kept][:, others]).T
    unexplained = second[others][:, others] - solved @ second[kept][:, others]
    gone = weight[:, others]
    return float((gone @ unexplained @ gone.T).trace()), weight[:, kept] + gone @ solved


def by_brute_force(weight: Tensor, inputs: Tensor, width: int, count: int) -> tuple[Tensor, Tensor]:
    """Columns that stay when the group whose loss costs least goes, until ``count`` are left."""
    second = inputs.T @ inputs / len(inputs)
    second = second + RIDGE * second.diagonal().mean() * torch.eye(len(second))
    groups = list(range(weight.shape[1] // width))

    def columns(there: list[int]) -> Tensor:
        return torch.tensor([g * width + n for g in there for n in range(width)])

    while len(groups) > count:
        tried = {g: left(weight, second, columns([h for h in groups if h != g]))[0] for g in groups}
        groups.remove(min(tried, key=lambda group: tried[group]))
    return columns(groups), left(weight, second, columns(groups))[1]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    return open_checkpoint(tiny_model(tmp_path / "model", "llama-gqa"))


def test_it_is_greedy_least_squares_on_the_pruned_stream(checkpoint: Checkpoint) -> None:
    plan, options = narrowed(checkpoint, share=0.5), options_by_name("osscar", {"ridge": RIDGE})
    loop = BlockLoop(checkpoint, torch.float64)
    division = divided_with_drawn(loop, WINDOWS, "osscar", options)
    assert division.fitted.equal(WINDOWS)
    assert not len(division.drawn)
    first = next(compensate(checkpoint, plan, division, COMPUTING, "osscar", options))
    dense, shape = Halves.of(loop.block(0)), checkpoint.shape
    hidden = loop.embed(WINDOWS)
    inputs = dense.attention_output(hidden)
    weight, width = dense.weights[f"{O_PROJ}.weight"], shape.head_dim * shape.queries_per_group
    expected = by_brute_force(weight, inputs.flatten(0, 1), width, plan.blocks[0].widths[0])
    torch.testing.assert_close(
        first.tensors[f"{O_PROJ}.weight"].double(), expected[1].float().double()
    )
    residual = hidden + inputs[..., expected[0]] @ first.tensors[f"{O_PROJ}.weight"].double().T
    inputs = dense.ffn_activation(residual).flatten(0, 1)
    weight = dense.weights[f"{DOWN_PROJ}.weight"]
    columns, expected_weight = by_brute_force(weight, inputs, 1, plan.blocks[0].widths[1])
    assert first.plan.ffn_channels == tuple(columns.tolist())
    torch.testing.assert_close(
        first.tensors[f"{DOWN_PROJ}.weight"].double(), expected_weight.float().double()
    )
    assert first.record.ffn
    assert first.record.ffn.form == "osscar"


def test_it_has_no_options_of_ours() -> None:
    with pytest.raises(
        InvalidInput, match="osscar has no option 'betas'; its options: sequential, "
    ):
        options_by_name("osscar", {"betas": "0,1"})


@pytest.mark.parametrize(("width", "count"), [(1, 60), (1, 199), (4, 13)])
def test_slimgpt_removes_in_batches(width: int, count: int) -> None:
    """By explicit inverses and weights that are fitted anew behind every batch."""
    generator = torch.Generator().manual_seed(5)
    columns = 200 if width == 1 else 80
    x = torch.randn(900, columns, generator=generator).double()
    x = x + x @ torch.randn(columns, columns, generator=generator).double() / 9
    weight = torch.randn(7, columns, generator=generator).double()
    second, there = x.T @ x, list(range(columns))
    while len(there) > count * width:
        weights = torch.linalg.lstsq(x[:, there], x @ weight.T).solution
        inverse = torch.linalg.inv(second[there][:, there])
        blocks = [inverse[n : n + width, n : n + width] for n in range(0, len(there), width)]
        diagonal = torch.cat([torch.linalg.cholesky(each).diagonal() for each in blocks]).square()
        errors = (weights.square().sum(1) / diagonal).view(-1, width).sum(1)
        size = min(64, len(there) - count) if width == 1 else 1
        gone = set(errors.argsort()[:size].tolist())
        there = [each for place, each in enumerate(there) if place // width not in gone]
    expected = tuple(each // width for each in there[::width])
    going = columns // width - count
    assert kept_in_batches(weight, Triangles.of(second), width, going) == expected


def test_slimgpt_takes_as_many_of_each_run() -> None:
    """The last of a run are let alone, however little they are worth."""
    generator = torch.Generator().manual_seed(6)
    x = torch.randn(400, 24, generator=generator).double()
    weight = torch.randn(5, 24, generator=generator).double()
    weight[:, :8] *= 1e-3
    second = Triangles.of(x.T @ x)
    assert kept_in_batches(weight, second, 2, 4)[:1] == (4,), "the first run would go whole"
    kept = kept_in_batches(weight, Triangles.of(x.T @ x), 2, 1, 2, 0)
    assert [sum(each // 4 == run for each in kept) for run in range(3)] == [3, 2, 4]


def test_slimgpt_is_undamped_and_told_so() -> None:
    options = options_by_name("slimgpt", {})
    assert (options.ridge, options.betas, options.row_steps) == (0.0, (0.0,), 0)
    with pytest.raises(InvalidInput, match="slimgpt has no option 'ridge'"):
        options_by_name("slimgpt", {"ridge": 0.1})
