"""``block-influence``: blocks that change their input little lose more (MoDeGPT, 2408.09632).

phi_l = L * ratio * softmax(-BI_l / temperature)_l,   BI_l = 1 - mean cos(h_in, h_out)
capped at what a block can lose; what is cut off is spread over the others in proportion

Source: the entropy-regularised allocation of MoDeGPT in closed form. The softmax of the negated
block influence is established; the temperature is recalled only, so its default (0.1) is this
project's choice. Inside a block, heads and channels lose the same share, as with ``uniform``.
"""

from __future__ import annotations

import torch

from bipline.compression.allocation.problem import Problem
from bipline.compression.allocation.shares import filled, scaled_to_budget
from bipline.compression.allocation.widths import Widths
from bipline.compression.criteria import options_of
from bipline.compression.options import BaseOptions, PositiveNumber
from bipline.compression.score import score_model


class BlockInfluenceOptions(BaseOptions):
    """How evenly blocks lose: high temperatures are uniform, low ones cut single blocks."""

    temperature: PositiveNumber = 0.1


OPTIONS = BlockInfluenceOptions
WINDOWS = True
NOT_UNIFORM = "it only says how much more one block loses than another"


def widths(problem: Problem, options: BlockInfluenceOptions) -> list[Widths]:
    """Widths by the softmax of the measured influences."""
    shares = torch.softmax(-influences(problem) / options.temperature, 0).tolist()
    weights = [s * c.shape.block_weights for s, c in zip(shares, problem.choices, strict=True)]
    return filled(problem, scaled_to_budget(weights, problem))


def influences(problem: Problem) -> torch.Tensor:
    """BI of every block, measured on the calibration windows: ``[blocks]``."""
    name = "block-influence"
    _, scores = score_model(problem.checkpoint, problem.windows, name, options_of(name))
    return torch.stack([block.ffn_units[0] for block in scores.blocks])
