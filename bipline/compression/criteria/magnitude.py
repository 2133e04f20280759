"""``magnitude``: the L2 norm of the columns that read a group (FLAP's ``mag_sp`` baseline).

channel j:        s_j = ||W[:, j]||_2 of o_proj or down_proj
attention group:  the sum over its channels

This is the root mean square change per token for inputs of unit mean square. It needs no
calibration data. Source: the code of FLAP (arXiv 2312.11983).
"""

from __future__ import annotations

from bipline.compression.criteria.interface import (
    Block,
    BlockScores,
    Options,
    Sums,
    column_norms,
    group_sums,
)
from bipline.model.block_loop import Activations

NEEDS: frozenset[str] = frozenset()


def observe(block: Block, activations: Activations) -> Sums:
    """Nothing: the weights are enough."""
    return {}


def score(sums: Sums, block: Block, options: Options) -> BlockScores:
    """Column norms of o_proj, added by group, and of down_proj."""
    columns = column_norms(block.weights["self_attn.o_proj.weight"])
    return BlockScores(
        attention_groups=group_sums(columns, block.shape),
        ffn_channels=column_norms(block.weights["mlp.down_proj.weight"]),
    )
