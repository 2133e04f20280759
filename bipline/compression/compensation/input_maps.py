"""Input maps: q_proj, k_proj and v_proj read what the dense stream would have given them.

n         what enters the three matrices in the pruned stream, behind the norm
n_dense   the same in the dense stream
M         least squares of n_dense - n on n, with ridge lambda, over all tokens that are fitted on
W         becomes W (I + beta M), which is W on n + beta M n

Sequentially, o_proj corrects what earlier blocks left of the stream only as far as its own inputs
show it, and these are computed from the drifted stream. The map takes the linear part of that
drift out before, at no cost to the smaller model: it is multiplied into weights that are there
(ours).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from bipline.compression.compensation.closed_forms import LeastSquares
from bipline.compression.compensation.moments import MomentSums
from bipline.compression.compensation.streams import Streams
from bipline.model.halves import Halves

READERS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")


def fitted_map(dense: Halves, streams: Iterable[Streams], ridge: float) -> Tensor | None:
    """M ``[hidden_size, hidden_size]`` of the block that both streams enter next.

    ``ridge`` is a share of the mean square of n. None where the streams are the same.
    """
    weight = dense.weights[f"{READERS[0]}.weight"]
    hidden_size = weight.shape[1]
    products = torch.promote_types(weight.dtype, torch.float32)
    sums = MomentSums(hidden_size, hidden_size, weight.device, products)
    for each in streams:
        for batch in each.batches():
            inputs = dense.attention_input(batch.reads)
            drift = dense.attention_input(batch.target) - inputs
            ones = inputs.new_ones(inputs.shape[:2].numel())
            sums.add(inputs.flatten(0, 1), ones, drift.flatten(0, 1))
    moments = sums.moments(dense.index)
    if moments.drift is None:
        return None
    every = torch.arange(hidden_size, device=weight.device)
    placeholder = weight.new_zeros(1, hidden_size, dtype=products)
    _, found = LeastSquares(placeholder, moments, every, every[:0]).solve(ridge)
    return found.weight if found else None


def mapped(weight: Tensor, linear_map: Tensor, beta: float, dtype: torch.dtype) -> Tensor:
    """W (I + beta M) ``[rows, hidden_size]``, rounded to the dtype it is written in."""
    wide = weight.to(linear_map)
    return (wide + beta * (wide @ linear_map)).to(dtype)
