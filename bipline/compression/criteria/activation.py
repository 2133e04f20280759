"""``activation``: how large activations are (Minitron-like, arXiv 2407.14679), a reconstruction.

query head:       ||o_h||_2 of each token, the input of o_proj in that head's channels
FFN channel j:    |a_j| of each token, the input of down_proj
over tokens:      ``tokens_by: mean`` inside a window (default), or ``l2``
over windows:     ``windows_by: l2`` (default), or ``mean``; both as a mean over windows
attention group:  the sum over its query heads

It looks at no weights beyond those that made the activations.

Source: Minitron scores width by activations alone and retrains afterwards: established, from its
abstract. Its aggregation (mean over the sequence, L2 over the batch) and its head score are
recalled from the literature, not read in its code, so "Minitron-like": a reconstruction.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from bipline.compression.criteria.interface import Block, BlockScores, Options, Sums, Tokens
from bipline.compression.criteria.needs import MOMENTS
from bipline.model.checkpoint import widened

NEEDS = MOMENTS


class ActivationOptions(Options):
    """How sizes of single tokens become one number."""

    tokens_by: Literal["mean", "l2"] = "mean"
    windows_by: Literal["mean", "l2"] = "l2"


OPTIONS = ActivationOptions


def reads(options: ActivationOptions) -> frozenset[str]:
    """Sums over windows, which bear how they were taken."""
    heads, channels = _names(options)
    return frozenset({"windows", heads, channels})


def observe(block: Block, tokens: Tokens, options: ActivationOptions) -> Sums:
    """Sums over windows of the sizes of query heads ``[heads]`` and of channels ``[f]``."""
    outputs = tokens.windows("attention_output").unflatten(-1, (-1, block.shape.head_dim))
    heads = torch.cat([_over_tokens(widened(one).norm(dim=-1), options) for one in outputs])
    channels = torch.cat(
        [_over_tokens(widened(one).abs(), options) for one in tokens.windows("ffn_activation")]
    )
    names, power = _names(options), 2 if options.windows_by == "l2" else 1
    summed = [size.double().pow(power).sum(0) for size in (heads, channels)]
    windows = torch.tensor(float(len(heads)), dtype=torch.float64)
    return {"windows": windows, **dict(zip(names, summed, strict=True))}


def score(sums: Sums, block: Block, options: ActivationOptions) -> BlockScores:
    """Means over windows; heads added up by group."""
    means = [sums[name] / sums["windows"] for name in _names(options)]
    heads, channels = (mean.sqrt() if options.windows_by == "l2" else mean for mean in means)
    return BlockScores(heads.view(block.shape.num_key_value_heads, -1).sum(1), channels)


def _over_tokens(sizes: Tensor, options: ActivationOptions) -> Tensor:
    """From the sizes in one window, ``[seqlen, count]``, to ``[1, count]``."""
    if options.tokens_by == "mean":
        return sizes.mean(0, keepdim=True)
    return sizes.square().mean(0, keepdim=True).sqrt()


def _names(options: ActivationOptions) -> tuple[str, str]:
    how = f"{options.tokens_by}_{options.windows_by}"
    return f"head_sizes_{how}", f"channel_sizes_{how}"
