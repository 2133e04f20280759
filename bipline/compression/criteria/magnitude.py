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
    Needs,
    Options,
    Sums,
    column_norms,
    group_sums,
)

NEEDS: Needs = "weights"
OPTIONS = Options


def reads(options: Options) -> frozenset[str]:
    """None: no window is run."""
    return frozenset()


def score(sums: Sums, block: Block, options: Options) -> BlockScores:
    """Column norms of o_proj, added by group, and of down_proj."""
    columns = column_norms(block.weights["self_attn.o_proj.weight"])
    return BlockScores(
        attention_groups=group_sums(columns, block.shape),
        ffn_channels=column_norms(block.weights["mlp.down_proj.weight"]),
    )
