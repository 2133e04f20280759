"""``policy-gradient``: keep-probabilities learned from losses alone (arXiv 2406.10576).

Every group and channel has a keep-probability s, its score in the end. A step draws K masks
m_k ~ Bernoulli(s), runs one batch of windows forward under each, and from the losses L_k:

baseline     delta <- (1 - 1/T) delta + (1/T) mean_k L_k
gradient     g = sum_k (L_k - delta) (m_k - s) / sqrt((s + e) (1 - s + e)) / (K - 1)
step         s <- project(s - rate * g),  onto {0 <= s <= 1, sum s = keep * n}
projection   clip(s - v, 0, 1), with v found by bisection
start        sigmoid((score - mean) / std), shifted to the mean keep, clipped, projected

Groups are projected among groups and channels among channels, each kind over all blocks: how
much a block keeps is part of what is learned, so the scores of different blocks compare.

Source: "Bypass Back-propagation: Optimization-based Structural Pruning for Large Language Models
via Policy Gradient" (ACL 2025) and its code. Established from the code: the formulas, K = 2,
T = 5, rate 0.002 for both kinds along a cosine, batches of 8 windows of 128 tokens, the start from
Wanda-sp with mean and standard deviation of a block and a kind. There the projection only holds
the sum from above, and Wanda-sp runs pruned blocks forward; here the sum is met and the start is
any criterion on the dense model (``standardise`` model compares its scores over all blocks).

The published g is not the gradient of the expected loss: it divides by the square root of s(1 - s)
and by K - 1, and its baseline contains the draws that it is compared with. :func:`gradient` is the
unbiased estimate, and :func:`published` the scaling from it to g.

The paper takes 15,000 steps. The default ``tokens`` here is minutes for a small model on one
processor, 488 steps of 8 windows of 128 tokens. Attention groups therefore move at 30 times the
published rate. FFN channels keep it and stay close to their start: a few hundred losses cannot
tell thousands of channels apart, and moving them faster raised the loss of the pruned model. That
budget helped a model with 32 attention groups and did nothing for one with 96: give it more.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from bipline.base.errors import InvalidInput
from bipline.base.progress import track
from bipline.compression.criteria.interface import BlockScores
from bipline.compression.criteria.needs import SEARCH
from bipline.compression.criteria.search import (
    Search,
    SearchOptions,
    batches_of,
    block_scores,
    cosine,
)
from bipline.compression.masks import Masks, check, masked_losses
from bipline.compression.options import PositiveNumber
from bipline.model.floor import Counted, forward_operations, head_operations
from bipline.model.shapes import ModelShape

NEEDS = SEARCH
# The e of the formula, as in the code.
EPSILON = 1e-7
# Scores that are all equal have no spread to divide by.
TINY = 1e-30
# Halvings of the interval of v: it is then as narrow as float64 can tell.
BISECTIONS = 100


class PolicyGradientOptions(SearchOptions):
    """The paper's knobs: ``samples`` is K, ``baseline_window`` T, and a rate for each kind.

    ``standardise`` says over what the initial scores are made comparable.
    """

    samples: int = Field(default=2, ge=2)
    attention_learning_rate: PositiveNumber = 0.06
    ffn_learning_rate: PositiveNumber = 2e-3
    baseline_window: int = Field(default=5, ge=1)
    standardise: Literal["block", "model"] = "block"

    @property
    def rates(self) -> tuple[float, float]:
        """The learning rates in the order of the kinds."""
        return self.attention_learning_rate, self.ffn_learning_rate


OPTIONS = PolicyGradientOptions


def search(searching: Search, options: PolicyGradientOptions) -> list[BlockScores]:
    """The keep-probabilities after the search.

    Raises InvalidInput for a budget of less than one step, for a loss that is not finite, and for
    a model whose blocks differ in width.
    """
    check(searching.loop.checkpoint.shape)
    steps = options.steps(searching, options.samples)
    start = searching.scores_of(options.initial, options.seed)
    by_block = options.standardise == "block"
    policy = [initial(scores, 1 - options.ratio, by_block) for scores in start]
    batches = batches_of(searching.token_ids, options.batch, steps, options.seed)
    draws = torch.Generator().manual_seed(options.seed)
    baseline = Baseline(options.baseline_window)
    for step, windows in enumerate(track(batches, "policy gradient", steps)):
        masks = [drawn(keep, options.samples, draws) for keep in policy]
        settings = [Masks(*pair) for pair in zip(*masks, strict=True)]
        losses = masked_losses(searching.loop, windows, settings)
        if not bool(losses.isfinite().all()):
            raise InvalidInput(f"policy gradient: a masked model's loss is not finite ({losses})")
        share = baseline.update(losses)
        for place, (keep, drawn_masks) in enumerate(zip(policy, masks, strict=True)):
            estimate = gradient(losses - baseline.value, drawn_masks, keep, share)
            rate = options.rates[place] * cosine(step, steps)
            moved = keep - rate * published(estimate, keep, len(losses), share)
            policy[place] = project(moved, (1 - options.ratio) * keep.numel())
    return block_scores(*policy)


def operations(
    shape: ModelShape, options: PolicyGradientOptions, _windows: int, seqlen: int
) -> Counted:
    """Floating-point operations of the forward passes that the budget of tokens is for."""
    window = forward_operations(shape, 1, seqlen) + head_operations(shape, 1, seqlen)
    return Counted(options.tokens / seqlen * window)


def initial(scores: Tensor, keep: float, by_block: bool = True) -> Tensor:
    """Keep-probabilities from any scores ``[blocks, n]``, of the same shape: the code's map.

    Inside each block (or over all) the scores are standardised, mapped by a sigmoid, shifted to
    the mean ``keep`` and clipped; then all are projected to the budget. Equal scores start equal.
    """
    rows = scores if by_block else scores.reshape(1, -1)
    centred = rows - rows.mean(1, keepdim=True)
    spread = (centred.square().sum(1, keepdim=True) / max(1, rows.shape[1] - 1)).sqrt()
    mapped = torch.sigmoid(centred / spread.clamp_min(TINY))
    shifted = mapped + keep - mapped.mean(1, keepdim=True)
    return project(shifted.clamp(0, 1), keep * scores.numel()).view_as(scores)


def drawn(keep: Tensor, samples: int, generator: torch.Generator) -> Tensor:
    """Bernoulli masks of a policy: ``[samples, *keep.shape]`` in float64."""
    uniform = torch.rand(samples, *keep.shape, generator=generator, dtype=torch.float64)
    return (uniform < keep).double()


class Baseline:
    """The moving average of losses, and how much of the present draw it holds."""

    def __init__(self, window: int) -> None:
        self.value = math.nan
        self._window = window

    def update(self, losses: Tensor) -> float:
        """Take in a step's losses ``[K]``; the share of their mean in the new value."""
        first = math.isnan(self.value)
        share = 1.0 if first else 1 / self._window
        past = 0.0 if first else (1 - share) * self.value
        self.value = past + share * float(losses.mean())
        return share


def gradient(advantages: Tensor, masks: Tensor, keep: Tensor, share: float) -> Tensor:
    """The unbiased estimate of d E[L] / d keep, of ``keep``'s shape.

    ``advantages`` ``[K]`` are losses less a baseline that holds ``share`` of these losses' mean
    and otherwise does not depend on the masks ``[K, *keep.shape]``. Such a baseline takes
    ``share`` of one sample's weight away in expectation, hence the division by K - share.
    A keep-probability of 0 or 1 is never drawn otherwise, so nothing is known of it: gradient 0.
    """
    weights = advantages.view(-1, *[1] * keep.dim())
    summed = (weights * (masks - keep)).sum(0)
    variance = keep * (1 - keep)
    scaled = summed / variance.where(variance > 0, torch.ones_like(keep))
    return scaled.where(variance > 0, torch.zeros_like(keep)) / (len(advantages) - share)


def published(estimate: Tensor, keep: Tensor, samples: int, share: float) -> Tensor:
    """The paper's g from the unbiased estimate: its preconditioner and its divisor K - 1."""
    scale = keep * (1 - keep) / ((keep + EPSILON) * (1 - keep + EPSILON)).sqrt()
    return estimate * scale * ((samples - share) / (samples - 1))


def project(values: Tensor, total: float) -> Tensor:
    """The nearest point (Euclidean) with all entries in [0, 1] and the sum ``total``.

    It is clip(values - v, 0, 1) for the v that meets the sum, which falls as v grows.
    Raises ValueError for a sum that no such point has.
    """
    if not 0 <= total <= values.numel():
        raise ValueError(f"{values.numel()} entries in [0, 1] cannot sum to {total}")
    low, high = float(values.min()) - 1, float(values.max())
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        if float((values - middle).clamp(0, 1).sum()) > total:
            low = middle
        else:
            high = middle
    return (values - (low + high) / 2).clamp(0, 1)
