"""``llm-bip``: LLM-BIP's block-wise forward importance (arXiv 2412.06419), a reconstruction.

FFN channel j:        s_j = rms(a_j) * ||Wd[:, j]||_2
attention channel j:  s_j = rms(o_j) * sum_m |Wo[m, j]| w_m,  w = 1 + |Wu|^T (|Wd|^T 1)
attention group:      the sum over its channels
expert e:             s_e = mean over the tokens that it sees of g ||E(x)||_2
channel j of expert e: s_ej = rms over the tokens that it sees of g a_j, times ||Wd_e[:, j]||_2
with experts:         w = 1 + sum_e mean_t(g_e) |Wu_e|^T (|Wd_e|^T 1),  g = 0 where it sees no token
                      and what all tokens share beside them (GLM-4.5) with g = 1

a and o are the inputs of down_proj and o_proj. The FFN score is exact: it is the change of the
block's output when the channel goes. Attention and FFN scores are in one unit, but the attention
bound is loose: never rank the two together.

An expert's score is of what it adds, E(x), its biases included, times the weight g that the router
gives it: token by token exactly how far the block's output moves when this is left out. That the
router then sends the token to another expert, and shares the weights anew, is not in it. An expert
that saw no token has the score 0.

The score of a channel inside an expert is exact as that of an FFN channel is: at every token the
block's output moves by g |a_j| ||Wd_e[:, j]||_2 when it goes, and the router, which reads what
enters, sends the token where it did. Channels are compared within their expert, of which each
keeps as many. In an expert that saw no token g a_j counts as 1. What all tokens share beside
experts is scored with g = 1 and keeps the same share, as its class has one width for both.

Source: the paper's formulas as quoted elsewhere are |X_U^j| . |W_D^j| and
|X_H^j| . |W_O^j| (I + |W_U||W_D|). Which norms the bars stand for and how channels become a head
are not known: an L2 norm over tokens, an L1 norm over the propagated outputs and the sum over
channels are this project's reconstruction. Of experts the paper's quoted formulas say nothing:
their score is that of REAP (arXiv 2510.13999) as its models' pages tell it, what enters a
mixture of experts is weighed by the router's mean weights, and both are a reconstruction, as is
that every expert keeps as many channels.

Where the FFN has no gate (Starcoder2, Nemotron) w is the same, |Wd||Wu| as the paper's formula for
an OPT has it. Where attention and FFN read the same stream (Cohere, Phi) w = 1:
nothing passes through.

Where norms lie behind sublayers (Gemma 2, OLMo 2), Wo and Wd have their gains on their rows, o and
a are divided by the dense root mean square of what enters the norm, and |Wd| in w is multiplied by
the mean of one over it. While these are held the FFN score is exact; ``llm-bip-exact`` does not
hold them. A reconstruction too.
"""

from __future__ import annotations

import torch

from bipline.compression.criteria.experts import Experts
from bipline.compression.criteria.inside_experts import with_channels
from bipline.compression.criteria.interface import (
    Block,
    BlockScores,
    Options,
    Sums,
    Tokens,
    absolute_product,
    column_norms,
    mean_ffn_scale,
    root_mean_square,
)
from bipline.compression.criteria.needs import MOMENTS
from bipline.compression.criteria.second_moments import second_moments
from bipline.model.experts import SHARED_DOWN, SHARED_UP

NEEDS = MOMENTS
OPTIONS = Options
EXPERTS = True
QUERY_HEADS = True
SUMS = frozenset({"tokens", "attention_output_squares", "ffn_activation_squares"})


def reads(options: Options) -> frozenset[str]:
    """What ``score`` reads."""
    return SUMS


def observe(block: Block, tokens: Tokens, options: Options) -> Sums:
    """Sums of squares of what enters o_proj and down_proj."""
    return second_moments(block, tokens)


def score(sums: Sums, block: Block, options: Options) -> BlockScores:
    """Scores from the sums; matrix-vector products only, so 3 d f operations a block."""
    if block.shape.num_experts:
        attention = attention_channels(sums, block, 1 + expert_reach(sums, block))
        return of_experts(sums, block, attention)
    attention = attention_channels(sums, block, 1 + through_ffn(sums, block))
    return BlockScores.of_channels(attention, ffn_scores(sums, block), block.shape)


def through_ffn(sums: Sums, block: Block) -> torch.Tensor:
    """|Wu|^T (|Wd|^T 1) ``[d]``: nothing where the FFN does not read what attention gives."""
    if block.parallel:
        return output_reach(block).new_zeros(block.shape.hidden_size)
    reach = output_reach(block) * mean_ffn_scale(sums)
    return absolute_product(block.weights["mlp.up_proj.weight"], reach)


def of_experts(sums: Sums, block: Block, attention: torch.Tensor) -> BlockScores:
    """Scores of a block with experts, and of their channels, beside those of ``attention``."""
    scores = BlockScores.of_channels(attention, expert_scores(sums), block.shape)
    return with_channels(scores, block, column_norms, sums)


def expert_scores(sums: Sums) -> torch.Tensor:
    """Mean over the tokens that each expert sees of g ||E(x)||, ``[experts]``; 0 for none."""
    return sums["expert_changes"] / sums["expert_tokens"].clamp(min=1)


def expert_reach(sums: Sums, block: Block) -> torch.Tensor:
    """How far a change of what enters the experts can move their output, ``[d]``: see above."""
    experts, weights = Experts(block), sums["expert_weights"] / sums["tokens"]
    total = weights.new_zeros(block.shape.hidden_size)
    for expert, weight in enumerate(weights):
        reach = absolute_product(experts.down(expert), torch.ones(block.shape.hidden_size))
        total += weight * absolute_product(experts.gate_up(expert)[1], reach)
    if (shared := block.weights.get(SHARED_DOWN)) is not None:
        reach = absolute_product(shared, torch.ones(block.shape.hidden_size))
        total += absolute_product(block.weights[SHARED_UP], reach)
    return total


def attention_channels(sums: Sums, block: Block, propagated: torch.Tensor) -> torch.Tensor:
    """Scores ``[a]`` of o_proj's inputs: how much each hidden channel ``[d]`` counts is given."""
    rms = root_mean_square(sums["attention_output_squares"], sums["tokens"])
    reach = absolute_product(block.output_matrix("attention"), propagated)
    return rms * reach


def ffn_scores(sums: Sums, block: Block) -> torch.Tensor:
    """rms(a_j) * ||Wd[:, j]||: the exact change of the block's output, channel by channel.

    With a norm behind, of the matrix and inputs while its root mean square is held.
    """
    rms = root_mean_square(sums["ffn_activation_squares"], sums["tokens"])
    return rms * column_norms(block.output_matrix("ffn"))


def output_reach(block: Block) -> torch.Tensor:
    """|Wd|^T 1 ``[f]``: how far a change of each FFN channel can move the block's output."""
    return absolute_product(block.output_matrix("ffn"), torch.ones(block.shape.hidden_size))
