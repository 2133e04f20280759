"""What removing one group truly does: to its block's output, and to the model's loss.

Nothing is estimated: the model is run again without the group, by a mask of zero on the columns
that read it. All removals of a model go through it together, each branching off the dense hidden
states at its own block, so the weights are read once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bipline.base.progress import track
from bipline.compression.masks import ATTENTION_READER, masked, mean_loss
from bipline.model.block_loop import Block, BlockLoop
from bipline.model.block_reader import Weights


@dataclass(frozen=True)
class TrueChanges:
    """Of one kind of group: which were removed, and what that changed.

    ``places`` are ``(block, index)``; ``output`` is the root mean square change per token of the
    block's output, ``loss`` the increase of the model's mean loss in nats per predicted token.
    """

    places: list[tuple[int, int]]
    output: list[float]
    loss: list[float]


@dataclass
class _Branch:
    kind: str
    place: tuple[int, int]
    output: float
    hidden: Tensor


@torch.no_grad()
def true_changes(
    loop: BlockLoop, token_ids: Tensor, channels: int, seed: int = 0
) -> dict[str, TrueChanges]:
    """Changes by every attention group, and by ``channels`` drawn FFN channels of each block."""
    shape = loop.checkpoint.shape
    generator = torch.Generator().manual_seed(seed)
    hidden, branches = loop.embed(token_ids), []
    for block in track(loop.blocks(), "remove groups one by one", shape.num_hidden_layers):
        for branch in branches:
            branch.hidden = block.run(branch.hidden)
        drawn = torch.randperm(shape.intermediate_size, generator=generator)[:channels]
        branches += _removals(block, hidden, drawn.sort().values.tolist())
        hidden = block.run(hidden)
    output = loop.output_weight()
    dense = mean_loss(loop, hidden, token_ids, output)
    found = {kind: TrueChanges([], [], []) for kind in ("attention_groups", "ffn_channels")}
    for branch in track(branches, "losses without them"):
        held = found[branch.kind]
        held.places.append(branch.place)
        held.output.append(branch.output)
        held.loss.append(mean_loss(loop, branch.hidden, token_ids, output) - dense)
    return found


def _removals(block: Block, hidden: Tensor, channels: list[int]) -> list[_Branch]:
    """The block's outputs without each of its groups, and without each of some channels."""
    source, dense = dict(block.weights), block.run(hidden)
    shape, branches = block.loop.checkpoint.shape, []
    wanted = [("attention_groups", index) for index in range(shape.num_key_value_heads)]
    wanted += [("ffn_channels", index) for index in channels]
    for kind, index in wanted:
        block.replace(_without(source, shape.num_key_value_heads, kind, index))
        without = block.run(hidden)
        change = (without - dense).double().square().sum(-1).mean().sqrt()
        branches.append(_Branch(kind, (block.index, index), float(change), without))
    block.replace(source)
    return branches


def _without(source: Weights, groups: int, kind: str, index: int) -> Weights:
    like = source[ATTENTION_READER]
    factors = {
        "attention_groups": like.new_ones(groups),
        "ffn_channels": like.new_ones(source["mlp.down_proj.weight"].shape[1]),
    }
    factors[kind][index] = 0
    return masked(source, **factors)
