"""``hywia``: HyWIA-style hybrid-grained importance (arXiv 2403.10799), a reconstruction.

over the weights w of a group, with the gradient g of the mean loss and the diagonal Fisher F:

fine:       f = sum |w g - 1/2 w^2 F|      divided by its mean over the block's groups of the kind
coarse:     c = |sum w g|                  likewise
token:      z_g = [f_g, c_g]
attention:  a_g = sum_h softmax_h(z_g . z_h / sqrt(2)) z_h      over the groups h of the kind
blend:      alpha_g = softmax(a_g),  s_g = alpha_g . z_g

Attention groups and FFN channels are normalised, attended and blended apart, block by block: s
has no unit, and the two kinds are never ranked together.

Established, from the abstract and secondary summaries: fine-grained and coarse-grained importance
from gradients, fused by an attention mechanism that blends them adaptively. The paper's formula
was not seen. This fusion, an attention with no weights to train (queries, keys and values are the
tokens), is this project's reconstruction, and so are both normalisations and what is taken as
fine and coarse. Where f = c it gives f. Gradients run the windows one at a time: ``micro_batch``
changes nothing here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bipline.compression.criteria.interface import (
    TILE_ROWS,
    Block,
    BlockScores,
    Options,
    Sums,
)
from bipline.compression.criteria.needs import GRADIENTS
from bipline.compression.gradient_sums import by_kind, names_of, with_mean_one

NEEDS = GRADIENTS
OPTIONS = Options


def reads(options: Options) -> frozenset[str]:
    """What ``score`` reads."""
    return names_of("element_mixed", "vector")


def score(sums: Sums, block: Block, options: Options) -> BlockScores:
    """Blended scores from the sums alone."""
    return by_kind(lambda kind: blended(sums[f"{kind}_element_mixed"], sums[f"{kind}_vector"]))


def blended(fine: Tensor, coarse: Tensor) -> Tensor:
    """Fine and coarse importance of groups, ``[groups]`` each, blended into one ``[groups]``."""
    tokens = torch.stack([with_mean_one(fine), with_mean_one(coarse)], 1)
    return (self_attention(tokens).softmax(1) * tokens).sum(1)


def self_attention(tokens: Tensor) -> Tensor:
    """Every token's softmax-weighted mean of all tokens: ``[groups, width] -> [groups, width]``.

    Queries come in tiles: all pairs of 11008 channels at once would be a gigabyte in float64.
    """
    scale = tokens.shape[1] ** -0.5
    tiles = [(tile @ tokens.T * scale).softmax(1) @ tokens for tile in tokens.split(TILE_ROWS)]
    return torch.cat(tiles)
