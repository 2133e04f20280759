"""What every block's pruning costs at the end: the loss that comes back where it alone is dense.

All blocks are pruned and corrected, as in a trial, and streams of windows run through them. At each
block one more stream begins, which takes what the block puts out as it was; the rest of the pruned
model runs on it. The loss that this wins, beside the error that the block had, says what an error
there costs. What noise at a place has become at the end does not: on SmolLM2-135M it let the last
block lose two thirds of its channels, where nothing costs more (docs/auto-experiments.md).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from bipline.compression.allocation.problem import Problem
from bipline.compression.compensation.engine import BlockCorrection
from bipline.compression.compensation.versions import PrunedBlock
from bipline.model.block_loop import BlockLoop, micro_batch_of, predicted
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
    for block, done in zip(loop.blocks(), corrections, strict=True):
        made = PrunedBlock(problem.checkpoint, block, plan.blocks[block.index])
        halves = made.corrected(done.plan, done.tensors)
        restored = [run_in_parts(loop, halves, stream) for stream in restored]
        restored.append(run_in_parts(loop, Halves.of(block), pruned[-few:]))
        pruned = run_in_parts(loop, halves, pruned)
    left = [_losses(loop, stream, token_ids[-few:]) for stream in restored]
    return _losses(loop, pruned, token_ids), torch.stack(left)


def run_in_parts(loop: BlockLoop, block: Halves, stream: Tensor) -> Tensor:
    """What a block puts out for ``[windows, seqlen, hidden_size]``, micro-batch by micro-batch."""
    parts = stream.split(micro_batch_of(stream.shape[1], loop.micro_batch))
    return torch.cat([block.run(part) for part in parts])


def _losses(loop: BlockLoop, stream: Tensor, token_ids: Tensor) -> Tensor:
    """Mean loss of every window from its last hidden states, ``[windows]``."""
    output = loop.output_weight()
    found = [
        loop.token_losses(hidden, targets.to(loop.device), output).cpu()
        for hidden, targets in predicted(stream, token_ids)
    ]
    return torch.cat(found).view(len(token_ids), -1).mean(1)


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
