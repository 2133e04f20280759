"""Masks: a factor for every attention group and FFN channel of every block of a model.

An entry scales the columns that read its group: ``self_attn.o_proj.weight`` for an attention group,
one column of ``mlp.down_proj.weight`` for an FFN channel. Biases stay. So an entry of 0 is exactly
what slicing the group away does, and an entry of 1 changes nothing.

Several masks run in one pass over the blocks, so a search that compares masks
reads the weights once for all of them. The gradient with respect to the masks is taken by
streamed back-propagation, with one block's weights in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bipline.base.errors import InvalidInput
from bipline.base.progress import silently
from bipline.model.block_loop import Block, BlockLoop, predicted
from bipline.model.block_reader import Weights
from bipline.model.experts import DOWN, SHARED_DOWN
from bipline.model.families import ModelShape
from bipline.model.floor import GRADIENT_HEADS, Counted, forward_operations, head_operations
from bipline.model.gradients import Parameters, block_gradients

ATTENTION_READER = "self_attn.o_proj.weight"
FFN_READER = "mlp.down_proj.weight"
# What adds to the residual stream, by sublayer: with all of it zero the stream passes unchanged.
OUTPUTS = {
    "attention": (ATTENTION_READER, "self_attn.o_proj.bias"),
    "ffn": (
        FFN_READER,
        "mlp.down_proj.bias",
        DOWN,
        f"{DOWN}_bias",
        SHARED_DOWN,
    ),
}


@dataclass(frozen=True)
class Masks:
    """The masks of all blocks: ``[blocks, num_key_value_heads]`` and ``[blocks, f]``."""

    attention_groups: Tensor
    ffn_channels: Tensor

    @classmethod
    def dense(cls, shape: ModelShape) -> Masks:
        """All entries at one, in float64: the dense model. Raises InvalidInput as :func:`check`."""
        check(shape)
        layers = shape.num_hidden_layers
        return cls(
            torch.ones(layers, shape.num_key_value_heads, dtype=torch.float64),
            torch.ones(layers, shape.intermediate_size, dtype=torch.float64),
        )

    def of_block(self, index: int, like: Tensor) -> Weights:
        """One block's masks by field name, with the dtype and on the device of ``like``."""
        return {name: getattr(self, name)[index].to(like) for name in self.__dataclass_fields__}


def check(shape: ModelShape) -> None:
    """Raise InvalidInput for a model whose blocks differ in width: masks are one tensor."""
    if shape.per_layer:
        raise InvalidInput(
            "searches over masks need a model whose blocks are equally wide; the blocks of this "
            "one differ"
        )


def masked(weights: Weights, attention_groups: Tensor, ffn_channels: Tensor) -> Weights:
    """A block's two masked matrices, differentiable in the masks ``[groups]`` and ``[f]``."""
    columns, down = weights[ATTENTION_READER], weights[FFN_READER]
    width = columns.shape[1] // len(attention_groups)
    by_column = attention_groups.repeat_interleave(width)
    return {ATTENTION_READER: columns * by_column, FFN_READER: down * ffn_channels}


def silenced(weights: Weights, sublayer: str) -> Weights:
    """Zeros for all that a block's ``attention`` or ``ffn`` adds to the residual stream.

    Weight and bias: the sublayer is then absent, not merely without groups.
    """
    names = [name for name in OUTPUTS[sublayer] if name in weights]
    return {name: torch.zeros_like(weights[name]) for name in names}


@torch.no_grad()
def masked_losses(loop: BlockLoop, token_ids: Tensor, settings: Sequence[Masks]) -> Tensor:
    """The model's mean loss under each of several masks, in one pass over the blocks.

    ``token_ids`` is ``[windows, seqlen]``; the losses are float64 ``[len(settings)]``, in nats per
    predicted token. Memory is one block and the hidden states under every mask.
    Raises InvalidInput for a model whose blocks differ in width.
    """
    check(loop.checkpoint.shape)
    states = [loop.embed(token_ids)] * len(settings)
    for block in loop.blocks():
        source = block.weights
        like = source[ATTENTION_READER]
        for place, masks in enumerate(settings):
            block.replace(masked(source, **masks.of_block(block.index, like)))
            states[place] = block.run(states[place])
    output = loop.output_weight()
    found = [mean_loss(loop, hidden, token_ids, output) for hidden in states]
    return torch.tensor(found, dtype=torch.float64)


@torch.no_grad()
def mean_loss(loop: BlockLoop, hidden: Tensor, token_ids: Tensor, output: Tensor) -> float:
    """Mean loss in nats per predicted token, from the last hidden states of some windows.

    ``hidden`` is ``[windows, seqlen, d]``, ``output`` :meth:`BlockLoop.output_weight`.
    """
    windows, seqlen = token_ids.shape
    total = 0.0
    for part, targets in predicted(hidden, token_ids.to(loop.device)):
        total += float(loop.token_losses(part, targets, output).double().sum())
    return total / (windows * (seqlen - 1))


def mask_gradients(
    loop: BlockLoop, token_ids: Tensor, masks: Masks, folder: Path | None = None
) -> tuple[float, Masks]:
    """The mean loss and its gradient with respect to every entry, by streamed back-propagation.

    Gradients have the shapes of the masks, in float64 on the CPU. With ``folder`` the inputs of
    the blocks wait on the disk. Raises InvalidInput for a model whose blocks differ in width.
    """
    check(loop.checkpoint.shape)

    def parametrise(block: Block) -> Parameters:
        source = block.weights
        leaves = masks.of_block(block.index, source[ATTENTION_READER])
        return Parameters(leaves, lambda held: masked(source, **held))

    with silently():
        parts = block_gradients(loop, token_ids, folder, parametrise=parametrise)
        found = {part.block.index: part for part in parts}
    ordered = [found[index].gradients for index in sorted(found)]
    stacked = {
        name: torch.stack([part[name].cpu().double() for part in ordered]) for name in ordered[0]
    }
    return found[0].loss, Masks(**stacked)


def masked_gradient_operations(shape: ModelShape, tokens: int, seqlen: int) -> Counted:
    """Floating-point operations of :func:`mask_gradients` for so many tokens.

    Forward, forward again block by block on the way back, and back to what every matrix reads and
    to the weights that masks are of; logits and the way back from them.
    """
    attention = shape.num_attention_heads * shape.head_dim
    readers = shape.hidden_size * (attention + shape.intermediate_size) / shape.block_weights
    passes = (3 + readers) * forward_operations(shape, 1, seqlen)
    return Counted(tokens / seqlen * (passes + GRADIENT_HEADS * head_operations(shape, 1, seqlen)))


def top_masks(scores: Tensor, keep: float) -> Tensor:
    """Ones for the highest scores of every block, ``[blocks, n] -> [blocks, n]`` in float64.

    ``keep`` is the share that stays, rounded to whole groups and at least one; of equal scores
    the first stay, as the uniform layout has it.
    """
    count = max(1, round(keep * scores.shape[1]))
    order = torch.sort(scores.double(), dim=1, descending=True, stable=True).indices
    return torch.zeros_like(scores, dtype=torch.float64).scatter_(1, order[:, :count], 1.0)
