"""Streamed gradients: exact back-propagation with one block's weights and gradients at a time.

The forward pass keeps what enters each block; the backward pass takes the blocks in reverse, runs
each again with gradients recorded, and hands on the gradient of its input. So the memory is one
block, its gradients, and the inputs of all blocks (on disk where a folder is given).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bipline.artifacts.progress import track
from bipline.model.block_loop import Block, BlockLoop, micro_batch_of, predicted
from bipline.model.block_reader import Weights

# Called with the gradients of one micro-batch before they are added: what a criterion that
# needs squares of per-window gradients looks at, with a micro-batch of one window.
EachBatch = Callable[[Weights], None]


@dataclass(frozen=True)
class BlockGradients:
    """Gradients of the mean loss per predicted token with respect to one block's weights."""

    block: Block
    gradients: Weights
    loss: float


def block_gradients(
    loop: BlockLoop,
    token_ids: Tensor,
    folder: Path | None = None,
    each_batch: Callable[[Block], EachBatch] | None = None,
) -> Iterator[BlockGradients]:
    """Gradients of the language model's mean loss, block by block from the last to the first.

    ``token_ids`` is ``[windows, seqlen]``; the loss is the mean over all ``windows * (seqlen - 1)``
    predicted tokens in nats. Gradients are added over micro-batches in at least float32.
    """
    inputs = _BlockInputs(folder)
    layers = loop.checkpoint.shape.num_hidden_layers
    hidden = loop.embed(token_ids).cpu()
    for block in track(loop.blocks(), "forward, inputs kept", layers):
        inputs.put(block.index, hidden)
        hidden = block.run(hidden.to(loop.device)).cpu()
    loss, upstream = _head(loop, hidden, token_ids)
    for block in track(loop.blocks(range(layers - 1, -1, -1)), "backward", layers):
        listener = each_batch(block) if each_batch else None
        gradients, upstream = _through(block, inputs.take(block.index), upstream, listener)
        yield BlockGradients(block, gradients, loss)


class _BlockInputs:
    """What entered each block, in memory or as one file a block."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._held: dict[int, Tensor] = {}

    def put(self, index: int, hidden: Tensor) -> None:
        if self._folder is None:
            self._held[index] = hidden
        else:
            from safetensors.torch import save_file

            save_file({"hidden": hidden.contiguous()}, self._path(index))

    def take(self, index: int) -> Tensor:
        """Give back a block's input, which is then kept no longer."""
        if self._folder is None:
            return self._held.pop(index)
        from safetensors.torch import load_file

        hidden = load_file(self._path(index))["hidden"]
        self._path(index).unlink()
        return hidden

    def _path(self, index: int) -> Path:
        if self._folder is None:
            raise ValueError("these inputs have no folder")
        return self._folder / f"input-{index:04d}.safetensors"


def _head(loop: BlockLoop, hidden: Tensor, token_ids: Tensor) -> tuple[float, Tensor]:
    """The mean loss, and its gradient with respect to the last hidden states."""
    output = loop.output_weight()
    windows, seqlen = token_ids.shape
    total, parts = 0.0, []
    for part, targets in predicted(hidden, token_ids):
        leaf = part.to(loop.device).detach().requires_grad_(True)
        with torch.enable_grad():
            losses = loop.token_losses(leaf, targets.to(loop.device), output)
            loss = losses.sum() / (windows * (seqlen - 1))
        (gradient,) = torch.autograd.grad(loss, leaf)
        total += float(loss.detach())
        parts.append(gradient.cpu())
    # The last token of a window predicts nothing, so nothing flows back from it.
    gradients = torch.zeros_like(hidden)
    gradients[:, :-1] = torch.cat(parts).view(windows, seqlen - 1, -1)
    return total, gradients


def _through(
    block: Block, hidden: Tensor, upstream: Tensor, listener: EachBatch | None
) -> tuple[Weights, Tensor]:
    """Gradients of a block's weights, and of its input, given those of its output."""
    loop = block.loop
    size = micro_batch_of(hidden.shape[1], loop.micro_batch)
    total: Weights = {}
    parts = []
    for part, above in zip(hidden.split(size), upstream.split(size), strict=True):
        leaf = part.to(loop.device).detach().requires_grad_(True)
        names = list(block.weights)
        weights = {name: block.weights[name].detach().requires_grad_(True) for name in names}
        with torch.enable_grad():
            output = loop.forward(weights, leaf)
            found = torch.autograd.grad(output, [leaf, *weights.values()], above.to(loop.device))
        parts.append(found[0].cpu())
        batch = {n: _widened(g) for n, g in zip(names, found[1:], strict=True)}
        if listener:
            listener({name: gradient.clone() for name, gradient in batch.items()})
        total = {n: total[n].add_(g) if n in total else g for n, g in batch.items()}
    return total, torch.cat(parts)


def _widened(gradient: Tensor) -> Tensor:
    return gradient if gradient.dtype == torch.float64 else gradient.float()
