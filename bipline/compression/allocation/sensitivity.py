"""How much the model's output moves when a half of a block is off by a little: forward passes only.

Noise of a given share of the stream's mean square is added behind one half of one block, and the
rest of the model runs on it. What the final stream, behind its RMSNorm, has moved by then, per
share, weighs that half's relative errors against those of all others. Over two models these
weights are proportional to the trace of the loss's Fisher matrix at the same place (within some
percent), which would need a backward pass.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bipline.compression.allocation.problem import Problem
from bipline.compression.compensation.held_out import difference
from bipline.model.families import build_of
from bipline.model.halves import Halves


@torch.no_grad()
def sensitivities(
    problem: Problem, samples: int, share: float, seed: int
) -> list[tuple[float, float]]:
    """Of every block: the weights of errors behind its attention and behind its FFN.

    Where these are parallel errors are told behind the block, and weigh alike.

    Every block is loaded once: the streams that were disturbed before run beside the dense one,
    2 * layers * samples windows at most.
    """
    windows = problem.windows
    token_ids = windows.token_ids[:: max(1, len(windows.token_ids) // samples)][:samples]
    loop = windows.computing.loop(problem.checkpoint)
    generator = torch.Generator().manual_seed(seed)
    eps, parallel = problem.checkpoint.rms_norm_eps, build_of(problem.checkpoint.family).parallel
    dense = loop.embed(token_ids)
    disturbed: list[Tensor] = []
    for block in loop.blocks():
        halves = Halves.of(block)
        disturbed = [halves.run(stream) for stream in disturbed]
        residual = halves.after_attention(dense)
        if not parallel:
            disturbed.append(halves.after_ffn(_noisy(residual, share, generator), dense))
        dense = halves.after_ffn(residual, dense)
        disturbed.append(_noisy(dense, share, generator))
    moved = [difference(each, dense, eps) / token_ids.numel() / share for each in disturbed]
    if parallel:
        return [(each, each) for each in moved]
    return list(zip(moved[::2], moved[1::2], strict=True))


def _noisy(stream: Tensor, share: float, generator: torch.Generator) -> Tensor:
    noise = torch.randn(stream.shape, generator=generator).to(stream)
    return stream + noise * (share * stream.square().mean(-1, keepdim=True)).sqrt()
