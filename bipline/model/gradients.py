"""Streamed gradients: exact back-propagation with one block's weights and gradients at a time.

The forward pass keeps what enters each block; the backward pass takes the blocks in reverse, runs
each again with gradients recorded, and hands on the gradient of its input. Both go through the
windows chunk by chunk, so the memory is one block, its gradients, and the inputs of all blocks;
with a folder those are on disk and one chunk of windows is in memory.

Gradients are taken of a block's own weights, or of whatever its weights are made from:
:class:`Parameters` says so, and both passes run the weights that are made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from bipline.base.progress import track
from bipline.model.block_loop import Block, BlockLoop, micro_batch_of, predicted
from bipline.model.block_reader import Weights
from bipline.model.checkpoint import widened
from bipline.model.hidden_states import CHUNK_WINDOWS

# Called with the gradients of one micro-batch before they are added: what a criterion that
# needs squares of per-window gradients looks at, with a micro-batch of one window. It may keep
# them and must not write into them.
EachBatch = Callable[[Weights], None]


@dataclass(frozen=True)
class Parameters:
    """What a block's gradients are taken of, and how its weights are made from them.

    ``weights`` must be differentiable; what it gives replaces the block's weights by name.
    """

    leaves: Weights
    weights: Callable[[Weights], Weights]


Parametrise = Callable[[Block], Parameters]


def own_weights(block: Block) -> Parameters:
    """The block's weights themselves: the gradients that full back-propagation gives."""
    return Parameters(block.weights, lambda leaves: leaves)


@dataclass(frozen=True)
class BlockGradients:
    """Gradients of the mean loss per predicted token, by the names of one block's leaves."""

    block: Block
    gradients: Weights
    loss: float


def block_gradients(
    loop: BlockLoop,
    token_ids: Tensor,
    folder: Path | None = None,
    each_batch: Callable[[Block], EachBatch] | None = None,
    parametrise: Parametrise = own_weights,
) -> Iterator[BlockGradients]:
    """Gradients of the language model's mean loss, block by block from the last to the first.

    ``token_ids`` is ``[windows, seqlen]``; the loss is the mean over all ``windows * (seqlen - 1)``
    predicted tokens in nats. Gradients are added over micro-batches in at least float32, in the
    order of the windows. A micro-batch never spans two chunks. ``folder`` must exist.
    """
    chunks = token_ids.split(CHUNK_WINDOWS)
    inputs, upstream = _Kept(folder, "input"), _Kept(folder, "gradient")
    layers = loop.checkpoint.shape.num_hidden_layers
    _forward(loop, chunks, inputs, parametrise)
    loss = _head(loop, chunks, inputs, upstream, layers)
    for block in track(loop.blocks(range(layers - 1, -1, -1)), "backward", layers):
        listener = each_batch(block) if each_batch else None
        parameters = parametrise(block)
        total: Weights = {}
        for number in range(len(chunks)):
            hidden = inputs.take(block.index, number)
            above = upstream.take(block.index + 1, number)
            gradient = _through(block, parameters, hidden, above, total, listener)
            if block.index:
                upstream.put(block.index, number, gradient)
        yield BlockGradients(block, total, loss)


class _Kept:
    """What enters each block, or the gradient of it, chunk by chunk: in memory or in files."""

    def __init__(self, folder: Path | None, name: str) -> None:
        self._folder = folder
        self._name = name
        self._held: dict[tuple[int, int], Tensor] = {}

    def put(self, index: int, number: int, hidden: Tensor) -> None:
        """Keep one chunk of what enters block ``index``."""
        if self._folder is None:
            self._held[index, number] = hidden
        else:
            from safetensors.torch import save_file

            path = self._path(self._folder, index, number)
            save_file({"hidden": hidden.contiguous()}, path)

    def get(self, index: int, number: int) -> Tensor:
        """One chunk, which stays."""
        if self._folder is None:
            return self._held[index, number]
        from safetensors.torch import load_file

        return load_file(self._path(self._folder, index, number))["hidden"]

    def take(self, index: int, number: int) -> Tensor:
        """One chunk, which is then kept no longer."""
        hidden = self.get(index, number)
        if self._folder is None:
            del self._held[index, number]
        else:
            self._path(self._folder, index, number).unlink()
        return hidden

    def _path(self, folder: Path, index: int, number: int) -> Path:
        return folder / f"{self._name}-{index:04d}-{number:04d}.safetensors"


def _forward(
    loop: BlockLoop, chunks: tuple[Tensor, ...], inputs: _Kept, parametrise: Parametrise
) -> None:
    """Run all blocks; afterwards ``inputs`` holds what enters each, and what leaves the last."""
    for number, chunk in enumerate(chunks):
        inputs.put(0, number, loop.embed(chunk).cpu())
    layers = loop.checkpoint.shape.num_hidden_layers
    for block in track(loop.blocks(), "forward, inputs kept", layers):
        parameters = parametrise(block)
        with torch.no_grad():
            made = replace(block, weights=_whole(block, parameters, parameters.leaves))
        for number in range(len(chunks)):
            hidden = inputs.get(block.index, number).to(loop.device)
            inputs.put(block.index + 1, number, made.run(hidden).cpu())


def _head(
    loop: BlockLoop, chunks: tuple[Tensor, ...], inputs: _Kept, upstream: _Kept, layers: int
) -> float:
    """The mean loss; its gradient with respect to the last hidden states goes upstream."""
    output = loop.output_weight()
    predictions = sum(chunk.shape[0] * (chunk.shape[1] - 1) for chunk in chunks)
    total = 0.0
    for number, token_ids in enumerate(chunks):
        hidden = inputs.take(layers, number)
        parts = []
        for part, targets in predicted(hidden, token_ids):
            leaf = part.to(loop.device).detach().requires_grad_(True)
            with torch.enable_grad():
                losses = loop.token_losses(leaf, targets.to(loop.device), output)
                loss = losses.sum() / predictions
            (gradient,) = torch.autograd.grad(loss, leaf)
            total += float(loss.detach())
            parts.append(gradient.cpu())
        # The last token of a window predicts nothing, so nothing flows back from it.
        gradients = torch.zeros_like(hidden)
        gradients[:, :-1] = torch.cat(parts).view(gradients[:, :-1].shape)
        upstream.put(layers, number, gradients)
    return total


def _through(
    block: Block,
    parameters: Parameters,
    hidden: Tensor,
    above: Tensor,
    total: Weights,
    listener: EachBatch | None,
) -> Tensor:
    """Add one chunk's gradients of a block's leaves to ``total``; give that of its input."""
    size = micro_batch_of(hidden.shape[1], block.loop.micro_batch)
    parts = []
    for part, gradient in zip(hidden.split(size), above.split(size), strict=True):
        below, batch = _micro_batch(block, parameters, part, gradient)
        parts.append(below.cpu())
        if listener:
            listener(batch)
        for name, found in batch.items():
            total[name] = total[name].add_(found) if name in total else found.clone()
    return torch.cat(parts)


def _whole(block: Block, parameters: Parameters, leaves: Weights) -> Weights:
    return {**block.weights, **parameters.weights(leaves)}


def _micro_batch(
    block: Block, parameters: Parameters, hidden: Tensor, above: Tensor
) -> tuple[Tensor, Weights]:
    loop = block.loop
    leaf = hidden.to(loop.device).detach().requires_grad_(True)
    leaves = {n: w.detach().requires_grad_(True) for n, w in parameters.leaves.items()}
    with torch.enable_grad():
        output = loop.forward(block.index, _whole(block, parameters, leaves), leaf)
        below, *found = torch.autograd.grad(output, [leaf, *leaves.values()], above.to(loop.device))
    return below, {n: widened(g) for n, g in zip(leaves, found, strict=True)}
