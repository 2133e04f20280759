"""Input maps: what the attention matrices read, brought back to what the dense stream gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bipline.compression.compensation.engine import BlockCorrection
from bipline.compression.compensation.input_maps import READERS, fitted_map, mapped
from bipline.compression.compensation.streams import Streams
from bipline.model.block_loop import BlockLoop
from bipline.model.checkpoint import Checkpoint
from bipline.model.halves import Halves
from bipline.model.opening import open_checkpoint
from bipline.values.compensation import Compensation
from tests.corrections import WINDOWS, corrected, narrowed, whole
from tests.tiny import tiny_model

RIDGE = 0.03


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint(tiny_model(tmp_path_factory.mktemp("model") / "llama", "llama-gqa"))


def second_block(checkpoint: Checkpoint, lost: float) -> tuple[Halves, Streams]:
    """Block 1 and the streams that enter it, one of them behind a block that lost a part."""
    loop = BlockLoop(checkpoint, torch.float64)
    streams = Streams(loop, WINDOWS, sequential=True)
    first, second = (Halves.of(loop.block(index)) for index in (0, 1))
    down = "mlp.down_proj.weight"
    streams.advance_dense(first)
    streams.advance_pruned(first.changed({**first.weights, down: (1 - lost) * first.weights[down]}))
    return second, streams


def entering(block: Halves, streams: Streams) -> tuple[Tensor, Tensor]:
    """What attention reads in the pruned stream and in the dense one, ``[tokens, d]``."""
    pairs = [
        tuple(map(block.attention_input, (batch.reads, batch.target)))
        for batch in streams.batches()
    ]
    return tuple(torch.cat([part.flatten(0, 1) for part in side]) for side in zip(*pairs))  # type: ignore[return-value] # noqa: B905


def test_the_map_is_the_ridge_solution(checkpoint: Checkpoint) -> None:
    block, streams = second_block(checkpoint, lost=0.5)
    found = fitted_map(block, [streams], RIDGE)
    assert found is not None
    read, dense = entering(block, streams)
    lifted = RIDGE * len(read) * read.square().mean() * torch.eye(read.shape[1]).double()
    rows = torch.cat([read, lifted / (RIDGE * len(read) * read.square().mean()).sqrt()])
    sides = torch.cat([dense - read, torch.zeros_like(lifted)])
    expected = torch.linalg.lstsq(rows, sides).solution.T
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-10)


def test_mapped_weights_read_the_mapped_stream(checkpoint: Checkpoint) -> None:
    block, streams = second_block(checkpoint, lost=0.5)
    linear_map = fitted_map(block, [streams], RIDGE)
    assert linear_map is not None
    read, dense = entering(block, streams)
    for name in READERS:
        weight = block.weights[f"{name}.weight"]
        outputs = read @ mapped(weight, linear_map, 0.5, torch.float64).T
        expected = (read + 0.5 * read @ linear_map.T) @ weight.T
        torch.testing.assert_close(outputs, expected)
        whole_map = read @ mapped(weight, linear_map, 1.0, torch.float64).T
        aim = dense @ weight.T
        assert (whole_map - aim).square().sum() < (read @ weight.T - aim).square().sum()


def test_without_drift_there_is_no_map(checkpoint: Checkpoint) -> None:
    block, streams = second_block(checkpoint, lost=0.0)
    assert fitted_map(block, [streams], RIDGE) is None


def betas(blocks: list[BlockCorrection]) -> list[float | None]:
    return [block.record.attention and block.record.attention.input_beta for block in blocks]


def test_blocks_behind_the_first_take_maps_and_keep_the_rows_of_the_plan(
    checkpoint: Checkpoint,
) -> None:
    blocks = corrected(checkpoint, narrowed(checkpoint), "obs", row_steps=0)
    assert betas(blocks)[0] is None
    assert any(betas(blocks)[1:])
    shape = checkpoint.shape
    for block, beta in zip(blocks, betas(blocks), strict=True):
        names = {f"{name}.weight" for name in READERS}
        assert names & block.tensors.keys() == (names if beta else set())
        if beta:
            groups = len(block.plan.attention_groups)
            key, query = (block.tensors[f"self_attn.{name}_proj.weight"] for name in "kq")
            assert key.shape == (groups * shape.head_dim, shape.hidden_size)
            assert len(query) == len(key) * shape.queries_per_group
            assert key.dtype == query.dtype == block.tensors["self_attn.o_proj.weight"].dtype


@pytest.mark.parametrize(
    ("compensation", "options"),
    [("obs", {"input_maps": False, "row_steps": 0}), ("obs", {"sequential": False}), ("bias", {})],
)
def test_there_are_none_unless_asked(
    checkpoint: Checkpoint, compensation: Compensation, options: dict[str, Any]
) -> None:
    blocks = corrected(checkpoint, narrowed(checkpoint), compensation, **options)
    assert not any(betas(blocks))
    assert not any(name.startswith(READERS) for block in blocks for name in block.tensors)


def test_whole_blocks_stay_as_they_are(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny_model(tmp_path / "model", "qwen3-gqa"))
    assert not any(block.tensors for block in corrected(checkpoint, whole(checkpoint), "obs"))
