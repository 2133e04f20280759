"""Gradient sums: one backward pass over the calibration windows, for all gradient criteria.

For every attention group and every FFN channel, over the weights w that go with it:

``element_first``         sum |w g|
``element_second``        sum |w^2 F|
``element_mixed``         sum |w g - 1/2 w^2 F|
``coupled_vectors``       sum over its rows and columns of |sum w g|
``vector``                |sum w g|
``chunk_element_first``   the first and the last of these for every chunk of CHUNK_WINDOWS windows,
``chunk_vector``          with that chunk's own mean gradient: ``[chunks, groups]``

g is the gradient of the language model's mean loss, F the mean over windows of the squared
gradient of each window's own mean loss: the diagonal of the Fisher information as LLM-Pruner
(arXiv 2305.11627) takes it. To an attention group belong the rows of q_proj of its query heads,
its rows of k_proj and v_proj and its columns of o_proj; to an FFN channel a row of gate_proj and
up_proj and a column of down_proj; to both the biases of those rows. LLM-Pruner's models have no
biases: counting them is this project's, and so is counting the gains of a norm of queries or keys
over all heads (OLMo 2) with their heads. Other norms, and the biases of o_proj and down_proj,
belong to no group. Which dimension runs along the groups is read from the family's table.

Squares of per-window gradients need the windows one at a time, whatever ``micro_batch`` the user
chose. The memory is two blocks' weights, six gradients of one block in at least float32, and the
inputs of all blocks; those go into the work directory where memory has no room for them. Nothing
is gone on from: a gradient pass that was killed starts again, and gives the same bytes.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from bipline.base.errors import InvalidInput
from bipline.base.progress import note
from bipline.compression.computing import Computing
from bipline.compression.criteria.interface import TILE_ROWS, Block, BlockScores, Options, Sums
from bipline.compression.partial_sums import check_finite
from bipline.model.block_loop import Block as LoopBlock
from bipline.model.block_loop import BlockLoop
from bipline.model.block_reader import Weights, block_shapes, place_elements
from bipline.model.checkpoint import Checkpoint
from bipline.model.families import block_axes
from bipline.model.gradients import block_gradients
from bipline.model.hidden_states import CHUNK_WINDOWS
from bipline.model.memory import MemoryNeed, gigabytes, pass_need, states_fit

KINDS = ("attention", "ffn")
# One block's gradients that are there at once: as autograd gives and as they are widened, their
# sum over windows, over the chunk, that of their squares, and one for what is made on the way.
GRADIENT_COPIES = 6
# What the backward pass of a window keeps, in activations of a forward pass.
BACKWARD = 4


@dataclass(frozen=True)
class Coupling:
    """How a tensor of a block hangs on groups: dimension ``dim``, ``width`` entries a group."""

    kind: str
    dim: int
    width: int


def gradient_sums(
    checkpoint: Checkpoint, token_ids: Tensor, computing: Computing, work: Path | None = None
) -> Iterator[tuple[Block, Sums]]:
    """Sums of every block for windows ``[windows, seqlen]``, from the last block to the first.

    Sums are float64 on the CPU, named ``KIND_NAME``. A block is valid until the next one comes.
    Raises InvalidInput for windows the model cannot take and for gradients that are not finite,
    and it or EnvironmentFailure when memory is too small even with the inputs of blocks on disk.
    """
    loop = replace(computing, micro_batch=1).loop(checkpoint)
    loop.check(token_ids)
    folder = _folder(loop, token_ids, computing, work)
    held: list[GradientAccumulator] = []

    def listen(block: LoopBlock) -> Callable[[Weights], None]:
        seen = Block.of(checkpoint, block.index, block.source_weights())
        coupled = couplings(checkpoint, block.index)
        held[:] = [GradientAccumulator(seen, coupled, len(token_ids))]
        return held[0]

    for found in block_gradients(loop, token_ids, folder, listen):
        sums = held[0].sums(found.gradients)
        # While the next block is computed, nobody needs the gradients of this one.
        del found
        check_finite(sums, held[0].block.index)
        yield held[0].block, sums
    if folder is not None:
        folder.rmdir()


def check_windows(criterion: str, options: Options, windows: int) -> None:
    """Raise InvalidInput when a criterion needs more calibration windows than there are."""
    if windows < options.least_windows:
        raise InvalidInput(
            f"criterion {criterion}: {windows} calibration windows are too few; with these "
            f"options it needs at least {options.least_windows}"
        )


def couplings(checkpoint: Checkpoint, index: int) -> dict[str, Coupling]:
    """The tensors of block ``index`` that belong to groups, by their names inside it."""
    shape = checkpoint.shape
    widths = {
        "query_heads": ("attention", shape.queries_per_group * shape.head_dim),
        "kv_heads": ("attention", shape.head_dim),
        "ffn_channels": ("ffn", 1),
    }
    found = {}
    for name, axes in block_axes(checkpoint.family, checkpoint.config, index).items():
        for dim, axis in enumerate(axes):
            if axis in widths:
                kind, width = widths[axis]
                found[name] = Coupling(kind, dim, width)
    return found


def grouped(
    weights: Weights,
    gradients: Weights,
    coupled: dict[str, Coupling],
    squares: Weights | None = None,
) -> Sums:
    """The sums of the groups of one block, over the tensors in ``coupled``.

    ``squares`` is F; without it the sums that need it are left out.
    """
    found: Sums = {}
    for name, place in coupled.items():
        square = None if squares is None else squares[name]
        lines = line_sums(weights[name], gradients[name], square, place.dim)
        lines["coupled_vectors"] = lines["vector"].abs()
        for term, values in lines.items():
            key, groups = f"{place.kind}_{term}", values.view(-1, place.width).sum(1).cpu()
            found[key] = found[key] + groups if key in found else groups
    return {key: value.abs() for key, value in found.items()}


def line_sums(weight: Tensor, gradient: Tensor, square: Tensor | None, dim: int) -> Sums:
    """Sums of a tensor's terms over each of its lines along ``dim``, ``[lines]`` in float64.

    ``vector`` is the sum of w g with its sign. Rows come in tiles, so float64 is never whole.
    """
    tiles: list[Sums] = []
    for start in range(0, len(weight), TILE_ROWS):
        rows = slice(start, start + TILE_ROWS)
        g = gradient[rows].double()
        first = weight[rows].to(g) * g
        terms = {"vector": first, "element_first": first.abs()}
        if square is not None:
            second = weight[rows].to(g).square() * square[rows]
            terms["element_second"] = second
            terms["element_mixed"] = (first - second / 2).abs()
        tiles.append({name: _across(term, dim) for name, term in terms.items()})
    put: Callable[[list[Tensor]], Tensor] = torch.cat if dim == 0 else _added
    return {name: put([tile[name] for tile in tiles]) for name in tiles[0]}


class GradientAccumulator:
    """One block's gradients, window by window: F over all of them, and the sums of every chunk."""

    def __init__(self, block: Block, coupled: dict[str, Coupling], windows: int) -> None:
        self.block = block
        self.coupled = coupled
        self.windows = windows
        self._squares: Weights = {}
        self._chunk: Weights = {}
        self._chunks: list[Sums] = []
        self._seen = 0

    def __call__(self, gradients: Weights) -> None:
        """Take in one window's share of the gradient of the mean loss over all windows."""
        for name in self.coupled:
            gradient = gradients[name]
            if name not in self._squares:
                self._squares[name] = torch.zeros_like(gradient)
                self._chunk[name] = torch.zeros_like(gradient)
            # The gradient of the window's own mean loss is windows * g, and F their mean square.
            self._squares[name].addcmul_(gradient, gradient, value=self.windows)
            self._chunk[name].add_(gradient)
        self._seen += 1
        if self._seen % CHUNK_WINDOWS == 0 or self._seen == self.windows:
            self._close_chunk()

    def sums(self, gradients: Weights) -> Sums:
        """All sums, given the gradients over all windows."""
        found = grouped(self.block.weights, gradients, self.coupled, self._squares)
        for kind in KINDS:
            for term in ("element_first", "vector"):
                key = f"{kind}_{term}"
                if key in found:
                    chunks = torch.stack([chunk[key] for chunk in self._chunks])
                    found[f"{kind}_chunk_{term}"] = chunks
        return found

    def _close_chunk(self) -> None:
        size = self._seen - len(self._chunks) * CHUNK_WINDOWS
        sums = grouped(self.block.weights, self._chunk, self.coupled)
        # From this chunk's share of the mean over all windows to the mean over its own.
        self._chunks.append({key: value * self.windows / size for key, value in sums.items()})
        for values in self._chunk.values():
            values.zero_()


def names_of(*terms: str) -> frozenset[str]:
    """The names of these sums, for attention groups and FFN channels."""
    return frozenset(f"{kind}_{term}" for kind in KINDS for term in terms)


def by_kind(score: Callable[[str], Tensor]) -> BlockScores:
    """Scores from a function of the kind, whose sums' names begin with it."""
    return BlockScores(attention_groups=score("attention"), ffn_channels=score("ffn"))


def with_mean_one(values: Tensor) -> Tensor:
    """Non-negative values divided by their mean; unchanged where all of them are 0."""
    mean = values.mean()
    return values / mean if bool(mean != 0) else values


def gradient_memory(loop: BlockLoop, token_ids: Tensor) -> MemoryNeed:
    """What the pass over windows ``[windows, seqlen]`` needs in bytes (:func:`gradient_need`)."""
    windows, seqlen = token_ids.shape
    return gradient_need(loop.checkpoint, loop.dtype, (windows, seqlen))


def gradient_need(
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    drawn: tuple[int, int],
    libraries: int | None = None,
) -> MemoryNeed:
    """The same from the header alone; ``hidden_states`` are the inputs of all blocks.

    ``libraries`` is what the process holds without the pass; this process's where it is None.
    """
    block, head = (
        pass_need(checkpoint, dtype, drawn, logits, 1, libraries) for logits in (False, True)
    )
    elements = place_elements(block_shapes(checkpoint))
    gradients = GRADIENT_COPIES * elements * max(4, dtype.itemsize)
    # Between two blocks there are the inputs of all of them and the gradients of one.
    generations = checkpoint.shape.num_hidden_layers + 2
    return replace(
        block,
        # Logits are there while no block goes back.
        activations=max(BACKWARD * block.activations, head.activations) + gradients,
        hidden_states=generations * block.hidden_states,
    )


def _folder(
    loop: BlockLoop, token_ids: Tensor, computing: Computing, work: Path | None
) -> Path | None:
    """Where the inputs of blocks are kept, empty; None for memory."""
    need = gradient_memory(loop, token_ids)
    resident = states_fit(need, computing.max_memory) and computing.resident
    if work is None:
        if not computing.resident:
            raise ValueError("inputs of blocks that are not kept in memory need a folder")
        return None
    place = "in memory" if resident else "on disk"
    note(f"gradients: {gigabytes(need.hidden_states)} of all blocks' inputs {place}")
    folder = work / "gradients"
    shutil.rmtree(folder, ignore_errors=True)
    if resident:
        return None
    folder.mkdir(parents=True)
    return folder


def _across(terms: Tensor, dim: int) -> Tensor:
    """Sums over the other dimension than ``dim``, where there is one."""
    return terms if terms.dim() == 1 else terms.sum(1 - dim)


def _added(parts: list[Tensor]) -> Tensor:
    return torch.stack(parts).sum(0)
