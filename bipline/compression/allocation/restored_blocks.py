"""What every block's pruning costs at the end: the loss that comes back where it alone is dense.

All blocks are pruned and corrected, as in a trial, and streams of windows run through them. At each
block one more stream begins, which takes what the block puts out as it was; the rest of the pruned
model runs on it. The loss that this wins, beside the error that the block had, says what an error
there costs. What noise at a place has become at the end does not: on SmolLM2-135M it let the last
block lose two thirds of its channels, where nothing costs more (docs/auto-experiments.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from bipline.compression.allocation.problem import Problem
from bipline.compression.compensation.engine import BlockCorrection
from bipline.compression.compensation.versions import PrunedBlock
from bipline.model.block_loop import BlockLoop, micro_batch_of
from bipline.model.halves import Halves
from bipline.values.plan import PruningPlan

# What a block costs at least, as a share of the mean: on few windows a gain may be chance.
LEAST_SHARE = 0.25


@torch.no_grad()
def restored_losses(
    problem: Problem,
    plan: PruningPlan,
    corrections: Iterable[BlockCorrection],
    token_ids: Tensor,
    few: int,
) -> tuple[Tensor, Tensor]:
    """Mean losses in nats of windows ``[windows, seqlen]``.

    ``[windows]`` of the model that corrected blocks make, and ``[blocks, few]`` of it with each
    block as it was, of the last ``few`` windows. Every block is loaded once, and layers * few
    windows at most run beside each other.
    """
    loop = problem.windows.computing.loop(problem.checkpoint)
    pruned, restored = loop.embed(token_ids), list[Tensor]()
    for dense, corrected in corrected_blocks(loop, plan, corrections):
        restored = [run_in_parts(loop, corrected, stream) for stream in restored]
        restored.append(run_in_parts(loop, dense, pruned[-few:]))
        pruned = run_in_parts(loop, corrected, pruned)
    output = loop.output_weight()
    left = [loop.window_losses(stream, token_ids[-few:], output).mean(1) for stream in restored]
    return loop.window_losses(pruned, token_ids, output).mean(1), torch.stack(left)


def corrected_blocks(
    loop: BlockLoop, plan: PruningPlan, corrections: Iterable[BlockCorrection]
) -> Iterator[tuple[Halves, Halves]]:
    """Each block as it was and as it was corrected; valid until the next one."""
    for block, done in zip(loop.blocks(), corrections, strict=True):
        made = PrunedBlock(loop.checkpoint, block, plan.blocks[block.index])
        yield made.dense, made.corrected(done.plan, done.tensors)


def run_in_parts(loop: BlockLoop, block: Halves, stream: Tensor) -> Tensor:
    """What a block puts out for ``[windows, seqlen, hidden_size]``, micro-batch by micro-batch."""
    parts = stream.split(micro_batch_of(stream.shape[1], loop.micro_batch))
    return torch.cat([block.run(part) for part in parts])


def error_weights(gains: Tensor, errors: Tensor) -> Tensor:
    """What an error costs in each block, ``[blocks]``, with a geometric mean of 1.

    By what restoring the block wins, in nats, and the error that it had; alike where no block wins
    anything.
    """
    mean = gains.double().clamp(min=0).mean()
    if not mean > 0:
        return torch.ones(len(gains), dtype=torch.float64)
    errors = errors.double()
    found = gains.double().clamp(min=LEAST_SHARE * float(mean)) / errors.clamp(
        min=1e-6 * float(errors.max())
    )
    return found / found.log().mean().exp()
