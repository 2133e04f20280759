"""Attention weights as a transformers attention module makes them: queries, keys and a softmax.

transformers' fast attention never holds them. Queries and keys are the module's own, with
whatever norms and positions it gives them; only what is made of them is made here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bipline.model.block_reader import Weights

NAME = "bipline_attention_weights"
# What a family may do to the scores that is not done here.
OTHER = ("softcap",)


@torch.no_grad()
def attention_weights(module: Any, held: Weights, normed: Tensor, options: Any) -> Tensor:
    """How much every query head takes of every token: ``[windows, heads, seqlen, seqlen]``.

    ``module`` is run with the weights ``held`` on ``normed`` ``[windows, seqlen, hidden_size]``;
    ``options`` are what it takes beside, the mask of what a token sees among them.
    """
    from transformers import AttentionInterface  # it brings libraries that pruning alone needs not

    AttentionInterface.register(NAME, _weights)
    # o_proj is not needed: it gives nothing, at no cost.
    cut = {name: each[:0] if name.startswith("o_proj.") else each for name, each in held.items()}
    config = module.config
    before = config._attn_implementation
    config._attn_implementation = NAME
    try:
        _, weights = torch.func.functional_call(module, cut, (normed,), options)
    finally:
        config._attn_implementation = before
    return weights


def _weights(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float,
    s_aux: Tensor | None = None, **more: Any,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """An attention function of transformers that gives weights, and in place of outputs queries.

    ``s_aux`` are sinks, one score for each head, whose shares go to no token.
    """
    if other := [name for name in OTHER if more.get(name) is not None]:
        raise NotImplementedError(f"{type(module).__name__}: attention with {', '.join(other)}")
    grouped = query.unflatten(1, (key.shape[1], -1)).flatten(2, 3)
    scores = (grouped @ key.mT * scaling).view(*query.shape[:3], key.shape[2])
    scores.masked_fill_(_unseen(scores, mask), -torch.inf)
    if s_aux is None:
        return query.transpose(1, 2), scores.softmax(-1)
    sinks = s_aux.view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
    return query.transpose(1, 2), torch.cat([scores, sinks], -1).softmax(-1)[..., :-1]


def _unseen(scores: Tensor, mask: Tensor | None) -> Tensor:
    """What a mask hides: where it is false, or where it is to be added and not 0."""
    if mask is None:
        return _later(scores)
    return mask.logical_not() if mask.dtype == torch.bool else mask != 0


def _later(scores: Tensor) -> Tensor:
    """Every token sees those up to itself."""
    return torch.ones(scores.shape[2:], dtype=torch.bool, device=scores.device).triu_(1)
