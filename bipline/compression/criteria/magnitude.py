"""``magnitude``: the L2 norm of the columns that read a group (FLAP's ``mag_sp`` baseline).

channel j:        s_j = ||W[:, j]||_2 of o_proj or down_proj
attention group:  the sum over its channels
expert:           the sum over its channels, of its own down_proj
channel of an expert:  as of an FFN, compared within its expert

This is the root mean square change per token for inputs of unit mean square. It needs no
calibration data.

Source: the code of FLAP (arXiv 2312.11983). Established, from that code. Where a norm lies behind a
sublayer (Gemma 2, OLMo 2), W has that norm's gain on its rows: a reconstruction.
"""

from __future__ import annotations

from bipline.compression.criteria.inside_experts import expert_columns, with_channels
from bipline.compression.criteria.interface import (
    Block,
    BlockScores,
    Options,
    Sums,
    column_norms,
)
from bipline.compression.criteria.needs import WEIGHTS

NEEDS = WEIGHTS
OPTIONS = Options
EXPERTS = True
QUERY_HEADS = True


def reads(options: Options) -> frozenset[str]:
    """None: no window is run."""
    return frozenset()


def score(sums: Sums, block: Block, options: Options) -> BlockScores:
    """Column norms of o_proj, added by group, and of down_proj."""
    attention = column_norms(block.output_matrix("attention"))
    if not block.shape.num_experts:
        ffn = column_norms(block.output_matrix("ffn"))
        return BlockScores.of_channels(attention, ffn, block.shape)
    whole = expert_columns(block, column_norms).sum(1)
    scores = BlockScores.of_channels(attention, whole, block.shape)
    return with_channels(scores, block, column_norms)
