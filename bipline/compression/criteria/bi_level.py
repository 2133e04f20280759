"""``bi-level``: mask scores learned by alternating with the weights, BiP-style (arXiv 2210.04092).

min over m of L(m * theta*(m)),  theta*(m) = argmin over theta of L(m * theta) + (gamma/2)|theta|^2

lower step   the weights take a gradient step under the present mask, on a batch of their own
upper step   the mask scores take one on another batch, through the mask and through theta*(m):
    d_g = sum over the weights w of g of (theta_w - m_g nabla_w / gamma) nabla_w
mask         m_g = 1 for the highest scores of each block and kind; gradients pass straight through

theta are o_proj and down_proj, the weights of g are the columns that read it, and nabla is the
gradient of the loss with respect to m * theta, which columns that are masked out have too. The
second term is BiP's implicit gradient; with frozen weights theta* does not depend on m and it is
left out. The scores of the last step are the criterion's.

Source: "Advancing Model Pruning via Bi-level Optimization" (NeurIPS 2022) and its code, which
prune the channels of convolutional networks. Established there: the alternation with disjoint
batches, the formula of the paper, top-k inside each layer by a straight-through gradient, SGD with
rates 0.1 along a cosine, 1/gamma = 0.1. Reconstructed here for language models, hence "-style":
the lower variables are low-rank updates B A of both matrices, kept for every block (``weights``
lora), or nothing (``frozen``); a mask entry is a whole group; scores start from another criterion,
divided by their mean in the block; and a step divides the gradients of each kind by their root
mean square, because one channel's gradient is a hundredth of one group's. The rate of the scores
follows from that: of 0.01, 0.02 and 0.05 the first did best in the hundred steps of the default
``tokens``, and the last added more noise than it learned. The code weights the implicit term by
theta once more than the paper's formula does; here it is the paper's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from bipline.base.errors import InvalidInput
from bipline.base.progress import silently, track
from bipline.compression.criteria.interface import BlockScores
from bipline.compression.criteria.needs import SEARCH
from bipline.compression.criteria.search import (
    Search,
    SearchOptions,
    batches_of,
    block_scores,
    cosine,
)
from bipline.compression.masks import (
    ATTENTION_READER,
    FFN_READER,
    Masks,
    check,
    masked,
    masked_gradient_operations,
    top_masks,
)
from bipline.compression.options import PositiveNumber
from bipline.model.block_loop import Block, BlockLoop
from bipline.model.block_reader import Weights
from bipline.model.families import ModelShape
from bipline.model.floor import Counted
from bipline.model.gradients import BlockGradients, Parameters, block_gradients

NEEDS = SEARCH
READERS = (ATTENTION_READER, FFN_READER)


class BiLevelOptions(SearchOptions):
    """``learning_rate`` is of the mask scores, ``weight_learning_rate`` of the low-rank updates.

    ``gamma`` is the paper's; its reciprocal weights the implicit term.
    """

    weights: Literal["frozen", "lora"] = "lora"
    rank: int = Field(default=8, ge=1, le=1 << 16)
    learning_rate: PositiveNumber = 0.01
    weight_learning_rate: PositiveNumber = 0.1
    gamma: PositiveNumber = 10.0
    tokens: int = Field(default=200_000, ge=1)


OPTIONS = BiLevelOptions


def search(searching: Search, options: BiLevelOptions) -> list[BlockScores]:
    """The mask scores after the search.

    Raises InvalidInput for a budget of less than one step, for gradients that are not finite, and
    for a model whose blocks differ in width.
    """
    loop, trained = searching.loop, options.weights == "lora"
    check(loop.checkpoint.shape)
    levels = 2 if trained else 1
    steps = options.steps(searching, levels)
    upper_windows, lower_windows = divided(searching.token_ids, options.seed, trained)
    start = searching.scores_of(options.initial, options.seed)
    scores = [kind / kind.mean(1, keepdim=True).clamp_min(1e-30) for kind in start]
    adapters = Adapters(loop.checkpoint.shape, options) if trained else None
    upper = batches_of(upper_windows, options.batch, steps, options.seed)
    lower = batches_of(lower_windows, options.batch, steps, options.seed)
    for step, windows in enumerate(track(upper, "bi-level", steps)):
        masks = Masks(*(top_masks(kind, 1 - options.ratio) for kind in scores))
        with silently():
            if adapters:
                adapters.step(loop, next(lower), masks)
            found = upper_gradients(loop, windows, masks, adapters, options.gamma)
        for place, gradient in enumerate(found):
            rate = options.learning_rate * cosine(step, steps)
            scores[place] = scores[place] - rate * unit(gradient)
    return block_scores(*scores)


def operations(shape: ModelShape, options: BiLevelOptions, _windows: int, seqlen: int) -> Counted:
    """Floating-point operations of the budget of tokens, each of which goes back too."""
    return masked_gradient_operations(shape, options.tokens, seqlen)


def divided(token_ids: Tensor, seed: int, halves: bool) -> tuple[Tensor, Tensor]:
    """Windows of the upper and of the lower level: disjoint halves drawn by the seed, or all.

    Raises InvalidInput where there is one window for two levels.
    """
    if not halves:
        return token_ids, token_ids
    if len(token_ids) < 2:
        raise InvalidInput("bi-level: 1 calibration window; its two levels need at least 2")
    order = torch.randperm(len(token_ids), generator=torch.Generator().manual_seed(seed))
    middle = (len(token_ids) + 1) // 2
    return token_ids[order[:middle]], token_ids[order[middle:]]


def unit(gradient: Tensor) -> Tensor:
    """A gradient divided by its root mean square. Raises InvalidInput where it is not finite."""
    if not bool(gradient.isfinite().all()):
        raise InvalidInput("bi-level: gradients are not finite; lower weight_learning_rate")
    return gradient / gradient.square().mean().sqrt().clamp_min(1e-30)


class Adapters:
    """The lower level's variables: B A of rank r beside o_proj and down_proj of every block.

    B starts at zero, so the first mask meets the model's own weights. They stay on the CPU; a
    step takes one block's to the device at a time.
    """

    def __init__(self, shape: ModelShape, options: BiLevelOptions) -> None:
        self._rate = options.weight_learning_rate
        generator = torch.Generator().manual_seed(options.seed)
        widths = (shape.num_attention_heads * shape.head_dim, shape.intermediate_size)
        self._held: list[Weights] = []
        for _ in range(shape.num_hidden_layers):
            leaves: Weights = {}
            for name, width in zip(READERS, widths, strict=True):
                drawn = torch.randn(options.rank, width, generator=generator)
                leaves[name + ".A"] = drawn / width**0.5
                leaves[name + ".B"] = torch.zeros(shape.hidden_size, options.rank)
            self._held.append(leaves)

    def leaves(self, block: Block) -> Weights:
        """One block's A and B, where its weights are and in their dtype."""
        like = block.weights[ATTENTION_READER]
        return {name: leaf.to(like) for name, leaf in self._held[block.index].items()}

    def step(self, loop: BlockLoop, token_ids: Tensor, masks: Masks) -> float:
        """One step of SGD on the masked model's loss, which is given as it was before the step."""

        def parametrise(block: Block) -> Parameters:
            return Parameters(self.leaves(block), _masked(block, masks, merged))

        loss = 0.0
        for part in block_gradients(loop, token_ids, parametrise=parametrise):
            loss = part.loss
            for name, leaf in self._held[part.block.index].items():
                leaf -= self._rate * part.gradients[name].to(leaf)
        return loss


def merged(weights: Weights, leaves: Weights) -> Weights:
    """theta of a block: both matrices with their low-rank updates added."""
    return {name: weights[name] + leaves[name + ".B"] @ leaves[name + ".A"] for name in READERS}


def _masked(
    block: Block, masks: Masks, make: Callable[[Weights, Weights], Weights]
) -> Callable[[Weights], Weights]:
    factors = masks.of_block(block.index, block.weights[ATTENTION_READER])
    source = block.weights
    return lambda leaves: masked(make(source, leaves), **factors)


def upper_gradients(
    loop: BlockLoop, token_ids: Tensor, masks: Masks, adapters: Adapters | None, gamma: float
) -> list[Tensor]:
    """d_g of all groups and of all channels, float64 ``[blocks, groups]`` and ``[blocks, f]``.

    Without ``adapters`` the weights are frozen and the implicit term is left out.
    """

    def theta(block: Block) -> Weights:
        with torch.no_grad():
            return merged(block.weights, adapters.leaves(block)) if adapters else block.weights

    def parametrise(block: Block) -> Parameters:
        factors = masks.of_block(block.index, block.weights[ATTENTION_READER])
        return Parameters(masked(theta(block), **factors), lambda leaves: leaves)

    def of_block(part: BlockGradients) -> list[Tensor]:
        weights, index = theta(part.block), part.block.index
        kinds = zip(READERS, (masks.attention_groups, masks.ffn_channels), strict=True)
        return [
            mask_gradient(weights[n], part.gradients[n], mask[index], gamma if adapters else None)
            for n, mask in kinds
        ]

    parts = block_gradients(loop, token_ids, parametrise=parametrise)
    found = {part.block.index: of_block(part) for part in parts}
    ordered = [found[index] for index in sorted(found)]
    return [torch.stack(kind) for kind in zip(*ordered, strict=True)]


def mask_gradient(theta: Tensor, nabla: Tensor, mask: Tensor, gamma: float | None) -> Tensor:
    """d_g of each group whose columns lie side by side: ``[d, columns] -> [groups]``, float64.

    ``gamma`` None leaves the implicit term out.
    """
    theta, nabla = theta.double(), nabla.double()
    mask = mask.to(theta)
    summed = (theta * nabla).sum(0).view(len(mask), -1).sum(1)
    if gamma is not None:
        summed = summed - mask / gamma * nabla.square().sum(0).view(len(mask), -1).sum(1)
    return summed.cpu()
