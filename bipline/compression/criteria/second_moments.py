"""The sums that most criteria share: squares of what enters o_proj and down_proj.

Where an FFN has experts, a token passes through a few of them, and what each adds is multiplied by
the weight that the router gives it. Their sums are taken expert by expert, over the tokens that
the router sends there.
"""

from __future__ import annotations

import torch

from bipline.compression.criteria.experts import Experts
from bipline.compression.criteria.interface import (
    FFN_SCALES,
    INPUTS,
    Block,
    Sums,
    Tokens,
    sum_of_squares,
    tiles,
)


def second_moments(block: Block, tokens: Tokens) -> Sums:
    """Tokens seen, and sums of squares of the inputs of o_proj ``[a]`` and down_proj ``[f]``.

    Inputs are those of :meth:`Block.output_inputs`. With a norm behind the FFN also the sum of its
    scales. With experts those of down_proj are ``[experts, f]``, of the inputs times the router's
    weight, and :func:`expert_sums` come with them; of what all tokens share beside experts
    ``shared_activation_squares``.
    """
    seen = len(tokens["attention_output"])
    sums = {"tokens": torch.tensor(float(seen), dtype=torch.float64)}
    experts = bool(block.shape.num_experts)
    for sublayer, name in INPUTS.items():
        if not (experts and sublayer == "ffn"):
            sums[f"{name}_squares"] = sum_of_squares(block.output_inputs(sublayer, tokens))
    if block.norm_behind("ffn").gain is not None:
        sums[FFN_SCALES] = block.output_scale("ffn", tokens).sum(dtype=torch.float64)
    if experts and block.shape.shared_channels:
        sums["shared_activation_squares"] = sum_of_squares(tokens["shared_activation"])
    return sums | (expert_sums(block, tokens) if experts else {})


def expert_sums(block: Block, tokens: Tokens) -> Sums:
    """Sums over the tokens that the router sends to each expert, ``[experts]`` each.

    ``expert_tokens``: how many. ``expert_weights``: of the router's weights g. ``expert_changes``:
    of g ||E(x)||, the norms of what the expert adds. ``ffn_activation_squares`` ``[experts, f]``:
    of squares of g a, with a what enters its down_proj.
    """
    shape, like = block.shape, tokens["expert_input"]
    each = like.new_zeros(3, shape.num_experts, dtype=torch.float64)
    squares = like.new_zeros(shape.num_experts, shape.intermediate_size, dtype=torch.float64)
    experts = Experts(block)
    for expert, weights, gate, up in experts.routed(tokens):
        inner = block.gating.value(gate, up)
        outputs = experts.output(expert, inner)
        norms = torch.cat([tile.norm(dim=1).double() for tile in tiles(outputs)])
        each[:, expert] = torch.stack(
            [weights.new_tensor(float(len(weights))), weights.sum(), weights @ norms]
        )
        squares[expert] = sum_of_squares(inner * weights[:, None].to(inner))
    names = ("expert_tokens", "expert_weights", "expert_changes")
    return dict(zip(names, each, strict=True)) | {"ffn_activation_squares": squares}
