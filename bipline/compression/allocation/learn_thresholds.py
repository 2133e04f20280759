"""Learned thresholds: how much each attention and FFN sublayer keeps, by MLPruning's thresholds.

Every sublayer has a threshold t. A step masks the model and moves the thresholds:

keep share    sigmoid(t)
mask          the highest ceil(share * n) of the sublayer's scores
loss          language-model loss + lambda * (remaining - target)^2
gradient      straight through the mask: d loss / dt = sum over kept groups of d loss / d mask
remaining     the share of the blocks' linear weights that the keep shares leave, differentiable

Source: MLPruning (arXiv 2105.14636) and its code: the sigmoid, ceil, the straight-through gradient
(which leaves out the sigmoid's slope), lambda up to 20,000, Adam with rate 0.01 falling linearly,
gradients clipped to the norm 1. Reconstructed here for decoders: thresholds for attention groups
and FFN channels; scores that stay as a criterion gave them, where MLPruning learns them with the
weights for epochs; a start at the target share instead of at all; a penalty on both sides of the
target, growing linearly, where the code punishes only too many weights by a lambda of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bipline.base.errors import InvalidInput
from bipline.base.progress import track
from bipline.compression.criteria.interface import BlockScores
from bipline.compression.criteria.search import KINDS, batches_of
from bipline.compression.masks import Masks, check, mask_gradients
from bipline.model.block_loop import BlockLoop
from bipline.model.families import ModelShape

LEARNING_RATE = 1e-2
FINAL_LAMBDA = 20_000.0
GRADIENT_NORM = 1.0
BATCH_WINDOWS = 8
# Tokens that run forward and backward: with windows of 128 tokens, about a hundred steps.
DEFAULT_TOKENS = 100_000
# The share of the steps over which lambda grows; afterwards it stays, and the rate falls on.
GROWING = 0.5


def learn_thresholds(
    loop: BlockLoop,
    token_ids: Tensor,
    scores: Sequence[BlockScores],
    target_share: float,
    tokens: int = DEFAULT_TOKENS,
    learning_rate: float = LEARNING_RATE,
    final_lambda: float = FINAL_LAMBDA,
    seed: int = 0,
) -> list[tuple[float, float]]:
    """The learned keep shares of attention groups and of FFN channels, block by block.

    ``token_ids`` is ``[windows, seqlen]``; ``target_share`` is of the blocks' linear weights, and
    the shares meet it nearly, not exactly: whoever plans by them rounds and repairs.
    Raises InvalidInput for a share outside (0, 1), a budget of less than one step, a model whose
    blocks differ in width, and scores of another number of blocks.
    """
    shape = loop.checkpoint.shape
    check(shape)
    _check(shape, scores, target_share)
    steps = _steps(token_ids, tokens)
    orders = [_order(torch.stack([getattr(block, kind) for block in scores])) for kind in KINDS]
    start = torch.logit(torch.tensor(target_share, dtype=torch.float64))
    thresholds = start.repeat(shape.num_hidden_layers, len(KINDS)).requires_grad_(True)
    optimiser = torch.optim.Adam([thresholds], lr=learning_rate)
    decay = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / steps)
    batches = batches_of(token_ids, BATCH_WINDOWS, steps, seed)
    for step, windows in enumerate(track(batches, "learn thresholds", steps)):
        penalty = final_lambda * min(1.0, (step + 1) / (GROWING * steps))
        excess = remaining_share(shape, thresholds.sigmoid()) - target_share
        optimiser.zero_grad()
        (penalty * excess.square()).backward()
        _add_model_gradient(loop, windows, orders, thresholds)
        torch.nn.utils.clip_grad_norm_([thresholds], GRADIENT_NORM)
        optimiser.step()
        decay.step()
    return [(float(groups), float(channels)) for groups, channels in thresholds.detach().sigmoid()]


def remaining_share(shape: ModelShape, keep_shares: Tensor) -> Tensor:
    """The share of the blocks' linear weights that stays, from keep shares ``[blocks, 2]``."""
    attention = shape.num_key_value_heads * shape.group_weights
    ffn = shape.intermediate_size * shape.channel_weights
    weights = keep_shares.new_tensor([attention, ffn]) / (attention + ffn)
    return (keep_shares * weights).sum(1).mean()


def kept_by(order: Tensor, keep_shares: Tensor) -> Tensor:
    """Masks ``[blocks, n]`` in float64 of the highest ceil(share * n) of each block.

    ``order`` ranks each block's groups from the highest, 0, on; ``keep_shares`` is ``[blocks]``.
    """
    counts = (keep_shares * order.shape[1]).ceil()
    return (order < counts[:, None]).double()


def _order(scores: Tensor) -> Tensor:
    """Every group's rank in its block, ``[blocks, n]``; of equal scores the first rank higher."""
    indices = torch.sort(scores.double(), dim=1, descending=True, stable=True).indices
    return indices.argsort(1)


def _add_model_gradient(
    loop: BlockLoop, windows: Tensor, orders: Sequence[Tensor], thresholds: Tensor
) -> None:
    """Add the straight-through gradient of the masked model's loss to that of the thresholds."""
    shares = thresholds.detach().sigmoid()
    masks = [kept_by(order, shares[:, kind]) for kind, order in enumerate(orders)]
    _, found = mask_gradients(loop, windows, Masks(*masks))
    columns = [
        (gradient * mask).sum(1)
        for gradient, mask in zip((found.attention_groups, found.ffn_channels), masks, strict=True)
    ]
    assert thresholds.grad is not None  # noqa: S101
    thresholds.grad += torch.stack(columns, 1)


def _steps(token_ids: Tensor, tokens: int) -> int:
    cost = min(BATCH_WINDOWS, len(token_ids)) * token_ids.shape[1]
    if tokens < cost:
        raise InvalidInput(f"tokens {tokens}: learning thresholds takes {cost} tokens a step")
    return tokens // cost


def _check(shape: ModelShape, scores: Sequence[BlockScores], target_share: float) -> None:
    if not 0 < target_share < 1:
        raise InvalidInput(f"target share {target_share}: must lie between 0 and 1, both excluded")
    if len(scores) != shape.num_hidden_layers:
        raise InvalidInput(
            f"the scores are of {len(scores)} blocks, the model has {shape.num_hidden_layers}"
        )
