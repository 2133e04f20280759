"""``random``: uniform scores by seed. The floor that every criterion must beat.

s = u,  drawn from [0, 1) by a generator seeded with the seed and the block's index

Source: none; every paper has such a baseline.
"""

from __future__ import annotations

import torch

from bipline.compression.criteria.draws import seed_of
from bipline.compression.criteria.interface import Block, BlockScores, Options, Sums
from bipline.compression.criteria.needs import WEIGHTS

NEEDS = WEIGHTS
OPTIONS = Options
EXPERTS = True


def reads(options: Options) -> frozenset[str]:
    """None: no window is run."""
    return frozenset()


def score(sums: Sums, block: Block, options: Options) -> BlockScores:
    """One draw per group, the same for the same seed and block."""
    generator = torch.Generator().manual_seed(seed_of(options.seed, block.index))
    shape = block.shape
    groups = torch.rand(shape.num_key_value_heads, generator=generator)
    units = torch.rand(shape.ffn_units, generator=generator)
    scores = BlockScores.of_ffn(groups, units, shape)
    if not shape.num_experts:
        return scores
    # Drawn last, so that experts have what they had before their channels were scored.
    inside = torch.rand(shape.num_experts, shape.intermediate_size, generator=generator)
    shared = torch.rand(shape.shared_channels, generator=generator)
    return scores.inside(inside, shared if len(shared) else None)
