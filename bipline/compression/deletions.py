"""Deletions: what leaving out one block, or one attention or FFN sublayer, does to the model.

All single deletions are measured in one pass over the blocks, which reads the weights once: a
model without block l is the dense model up to there, so it branches off the dense hidden states
and only runs the blocks after it, half of all block runs on average.

``loss``    the increase of the mean loss in nats per predicted token
``logits``  the L2 distance of the logits to the dense model's, mean over predicted tokens

:func:`shapley_values` turns them into what "A deeper look at depth pruning of LLMs" (arXiv
2407.16286) calls Shapley values in its code: a metric's mean over the measured models that hold a
unit against its mean over those that lack it, with the sign that makes larger more important.
Over single deletions that is n / (n - 1) times the unit's change, less a constant: the ranking of
the changes themselves. The true Shapley value would average over subsets of all sizes.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from bipline.base.errors import InvalidInput
from bipline.base.progress import track
from bipline.compression.masks import OUTPUTS, mean_loss, silenced
from bipline.model.block_loop import Block, BlockLoop, predicted

Unit = Literal["blocks", "sublayers"]
Metric = Literal["loss", "logits"]
# Hidden states of all deletions that are in memory at once; windows beyond it take another pass.
STATES_BYTES = 1 << 30


def deletion_changes(
    loop: BlockLoop, token_ids: Tensor, unit: Unit = "blocks", metric: Metric = "loss"
) -> Tensor:
    """The change that leaving out each unit makes: float64 ``[blocks, 1]`` or ``[blocks, 2]``.

    ``sublayers`` gives two columns, attention and FFN. A sublayer that is left out adds nothing to
    the residual stream, its bias included. ``token_ids`` is ``[windows, seqlen]``; windows that do
    not fit into memory together run one part after the other, the weights read once for each.
    """
    layers = loop.checkpoint.shape.num_hidden_layers
    columns = 1 if unit == "blocks" else len(OUTPUTS)
    parts = token_ids.split(_windows_at_once(loop, token_ids, layers * columns))
    total = torch.zeros(layers * columns, dtype=torch.float64)
    for part in track(parts, "single deletions"):
        # Every window predicts as many tokens, so windows weigh alike.
        total += _changes_of(loop, part, unit, metric) * len(part)
    return (total / len(token_ids)).view(layers, columns)


def shapley_values(changes: Tensor) -> Tensor:
    """A unit's importance from single deletions: mean if absent less mean if present.

    ``changes`` are those of :func:`deletion_changes`; the values have their shape. Each unit is
    absent in one measured model and present in all others, the other sublayers' included.
    Raises InvalidInput where there is one unit only.
    """
    count = changes.numel()
    if count < 2:
        raise InvalidInput("Shapley values compare units; this model has one block only")
    present = (changes.sum() - changes) / (count - 1)
    return changes - present


def _windows_at_once(loop: BlockLoop, token_ids: Tensor, units: int) -> int:
    hidden_size = loop.checkpoint.shape.hidden_size
    window_bytes = token_ids.shape[1] * hidden_size * loop.dtype.itemsize
    return max(1, min(len(token_ids), STATES_BYTES // (window_bytes * (units + 1))))


@torch.no_grad()
def _changes_of(loop: BlockLoop, token_ids: Tensor, unit: Unit, metric: Metric) -> Tensor:
    """The changes of all units on some windows, in the blocks' order: ``[units]``."""
    dense = loop.embed(token_ids)
    without: list[Tensor] = []
    for block in loop.blocks():
        source = block.weights
        without = [block.run(hidden) for hidden in without] + _branches(block, dense, unit)
        block.weights = source
        dense = block.run(dense)
    output = loop.output_weight()
    if metric == "logits":
        found = [_distance(loop, hidden, dense, token_ids, output) for hidden in without]
    else:
        losses = [mean_loss(loop, hidden, token_ids, output) for hidden in (dense, *without)]
        found = [loss - losses[0] for loss in losses[1:]]
    return torch.tensor(found, dtype=torch.float64)


def _branches(block: Block, dense: Tensor, unit: Unit) -> list[Tensor]:
    """Hidden states after this block with each of its units left out."""
    if unit == "blocks":
        return [dense]
    source, states = block.weights, []
    for sublayer in OUTPUTS:
        block.weights = {**source, **silenced(source, sublayer)}
        states.append(block.run(dense))
    return states


def _distance(
    loop: BlockLoop, hidden: Tensor, dense: Tensor, token_ids: Tensor, output: Tensor
) -> float:
    """Mean L2 distance of two models' logits over predicted tokens, a few tokens at a time."""
    windows, seqlen = token_ids.shape
    total = 0.0
    pieces = zip(predicted(hidden, token_ids), predicted(dense, token_ids), strict=True)
    for (changed, _), (original, _) in pieces:
        difference = loop.token_logits(changed, output) - loop.token_logits(original, output)
        total += float(difference.norm(dim=-1).double().sum())
    return total / (windows * (seqlen - 1))
