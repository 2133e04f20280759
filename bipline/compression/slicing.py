"""Slicing: what a plan keeps of a checkpoint, tensor by tensor, with corrections in their places.

Blocks are numbered anew; a sublayer of which no group stays takes its norm with it. Where the
smaller model has a bias that the source has not, it is the correction's, or zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bipline.base.errors import InvalidInput
from bipline.compression.corrections import Corrections
from bipline.model.checkpoint import TORCH_DTYPES, Checkpoint, widened
from bipline.model.experts import DOWN, of_experts, renumbered
from bipline.model.families import (
    block_axes,
    block_lying,
    block_parts,
    build_of,
    family_in,
    tensor_shapes,
)
from bipline.model.fused import part_rows
from bipline.model.shapes import ModelShape, shape_of
from bipline.model.writer import TensorSpec
from bipline.values.plan import BlockPlan, PruningPlan


@dataclass(frozen=True)
class _Corrected:
    """A correction, and the rows of a tensor that it takes; columns where that is ``turned``."""

    load: Callable[[], Tensor]
    places: Tensor
    turned: bool


@dataclass(frozen=True)
class Inside:
    """What stays of a tensor of all experts, of each its own: ``indices`` along ``axis``."""

    axis: int
    indices: Tensor

    def of(self, piece: Tensor, first: int) -> Tensor:
        """That of the experts that stay from the ``first`` on, as many as there are here."""
        kept = self.indices[first : first + len(piece)].to(piece.device)
        sizes = [len(kept), *(-1 if axis == self.axis else 1 for axis in range(1, piece.dim()))]
        return piece.take_along_dim(kept.view(sizes), self.axis)


@dataclass(frozen=True)
class _Target:
    """A tensor of the smaller model: what is read for it, and which parts lie in its rows.

    ``source`` is empty for one that is added; ``inside`` is of a tensor of all experts.
    """

    name: str
    source: str
    shape: tuple[int, ...]
    rows: Tensor | None = None
    columns: Tensor | None = None
    inside: Inside | None = None
    corrected: list[_Corrected] = field(default_factory=list)


class _Source:
    """A block of the source: in what its tensors lie, and what a plan keeps of them."""

    def __init__(self, checkpoint: Checkpoint, index: int, block: BlockPlan) -> None:
        self.index = index
        self.names = checkpoint.block_names(index)
        self.axes = block_axes(checkpoint.family, checkpoint.config, index)
        self.places = checkpoint.rows_inside(index)
        self.kept = kept_indices(block, checkpoint.shape.block(index))
        named = build_of(checkpoint.family).block_weights
        self.experts = renumbered(named, block.experts)
        # By what the tensors of experts are called now, as they are in what is sliced.
        self.channels = of_experts(named, list(map(_indices, block.expert_channels)))
        self.of_each = indices_of_each(block)

    def rows(self, parts: Sequence[str]) -> Tensor | None:
        """The rows to read of what parts lie in, by their names in the smaller model; all: None.

        They ascend.
        """
        kept = []
        for part in parts:
            lies = self.experts.get(part, part)
            if (inside := self.along(part, self.axes[lies][0])) is not None:
                kept.append(self.places[lies][inside])
        return torch.cat(kept).sort().values if kept else None

    def along(self, part: str, axis: str) -> Tensor | None:
        """What stays of a tensor along an axis, by its name in the smaller model; None for all."""
        if axis == "ffn_channels" and part in self.channels:
            return self.channels[part]
        return self.kept.get(axis)

    def inside(self, axes: tuple[str, ...]) -> Inside | None:
        """What stays of a tensor of all experts within each; None for all of it."""
        return inside_of(axes, self.of_each)


class Slicer:
    """Reads what a plan keeps: rows, columns, corrected tensors and biases that are added.

    ``config`` is that of the smaller model. Raises InvalidInput where corrections do not fit it.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        plan: PruningPlan,
        config: Mapping[str, Any],
        corrections: Corrections | None = None,
    ) -> None:
        self.checkpoint = checkpoint
        self._first = next(iter(checkpoint.stored_names(0).values()))
        self._family, self._config = family_in(config), config
        self._shapes = tensor_shapes(self._family, config, shape_of(config))
        self._targets = {
            name: _Target(name, name, shape)
            for name, shape in self._shapes.items()
            if name in checkpoint.tensors
        }
        for number, index in enumerate(plan.kept_blocks):
            source = _Source(checkpoint, index, plan.blocks[index])
            for target in self._of_block(number, source, corrections):
                self._targets[target.name] = target
        # In the order of the model's tensors; those that are added come last.
        known = [self._targets[name] for name in self._shapes]
        placed = [replace(each, name=checkpoint.stored_name(each.name)) for each in known]
        placed += [_Target(n, n, checkpoint.tensor_header(n)[1]) for n in sorted(checkpoint.beside)]
        self._targets = {each.name: each for each in sorted(placed, key=lambda one: not one.source)}

    def specs(self) -> list[TensorSpec]:
        """What :meth:`pieces` will give for every tensor, in file order; added ones come last."""
        return [
            TensorSpec(name, self._dtype(target), target.shape)
            for name, target in self._targets.items()
        ]

    def pieces(
        self, names: Sequence[str], tick: Callable[[], None] = lambda: None
    ) -> Iterator[tuple[str, Tensor]]:
        """Tensors in order, sliced, in pieces of whole rows; ``tick`` is called once for each.

        Their names are those of the smaller model, where they lie in it.
        """
        targets = [self._targets[name] for name in names]
        wanted = [(target.source, target.rows) for target in targets if target.source]
        read = self.checkpoint.stream(wanted)
        for target in targets:
            tick()
            first, corrected = 0, [(each, each.load()) for each in target.corrected]
            while first < target.shape[0]:
                # A corrected tensor's source is read too: the plan is held to its digest.
                piece = next(read)[1] if target.source else self._zeros(target)
                if target.columns is not None:
                    piece = piece.index_select(1, target.columns)
                if target.inside is not None:
                    piece = target.inside.of(piece, first)
                yield target.name, _overlaid(piece, first, corrected)
                first += len(piece)
        for _ in read:  # until the last digest is taken
            pass

    def _of_block(
        self, number: int, source: _Source, corrections: Corrections | None
    ) -> Iterator[_Target]:
        """What there will be of a block, which has this ``number`` in the smaller model."""
        index, prefix = source.index, self.checkpoint.block_prefix(number)
        axes = block_axes(self._family, self._config, number)
        sizes = shape_of(self._config).block(number)
        fitting = corrections.shapes(index) if corrections else {}
        lying = block_lying(self._family, self._config, number)
        for name, parts in block_parts(self._family, self._config, number).items():
            turned = lying.turned(name)
            target = self._origin(prefix + name, parts, source, axes[parts[0]], turned)
            shapes = [tuple(map(sizes.axis_size, axes[part])) for part in parts]
            places = part_rows([rows for rows, *_ in shapes], lying.groups_of(name))
            for part, shape, inside in zip(parts, shapes, places, strict=True):
                if corrections is not None and part in fitting:
                    _check_shape(part, index, fitting.pop(part), shape)
                    load = partial(self._correction, corrections, index, part)
                    target.corrected.append(_Corrected(load, inside, turned))
            yield target
        for name, shape in fitting.items():
            _check_shape(name, index, shape, ())

    def _origin(
        self, name: str, parts: tuple[str, ...], source: _Source, axes: tuple[str, ...],
        turned: bool,
    ) -> _Target:  # fmt: skip
        """Where a tensor of a block comes from: rows and columns of one that is stored."""
        shape = self._shapes[name]
        found = {source.names.get(source.experts.get(part, part), "") for part in parts}
        if len(found) > 1:
            raise ValueError(f"{name} lies in several tensors of the source")
        [stored] = found
        if not stored:
            return _Target(name, "", shape)
        columns = source.along(parts[0], axes[1]) if len(axes) > 1 else None
        rows = source.rows(parts)
        kept = (columns, rows) if turned else (rows, columns)
        return _Target(name, stored, shape, *kept, inside=source.inside(axes))

    def _dtype(self, target: _Target) -> str:
        """Biases that are added are written like the weights of the first block."""
        return self.checkpoint.tensor_header(target.source or self._first)[0]

    def _correction(self, corrections: Corrections, index: int, name: str) -> Tensor:
        """A corrected tensor as it is stored: without the multiplier that it was fitted with."""
        tensor, multiplier = corrections.tensor(index, name), self.checkpoint.multipliers.get(name)
        if multiplier is None:
            return tensor
        return (widened(tensor) / multiplier).to(tensor.dtype)

    def _zeros(self, target: _Target) -> Tensor:
        return torch.zeros(target.shape, dtype=TORCH_DTYPES[self._dtype(target)])


def _overlaid(piece: Tensor, first: int, corrected: list[tuple[_Corrected, Tensor]]) -> Tensor:
    """Rows from ``first`` on of a tensor, with what corrections say of them."""
    for each, tensor in corrected:
        if each.turned:
            piece[:, each.places] = tensor.T[first : first + len(piece)]
            continue
        here = (each.places >= first) & (each.places < first + len(piece))
        piece[each.places[here] - first] = tensor[here]
    return piece


def _check_shape(name: str, index: int, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    """Raise InvalidInput for a correction of another shape than the smaller model's tensor."""
    if shape != expected:
        raise InvalidInput(
            f"correction {name} of block {index} has shape {list(shape)}, the smaller model's is "
            f"{list(expected)}"
        )


def kept_indices(block: BlockPlan, shape: ModelShape) -> dict[str, Tensor]:
    """Kept row or column indices by axis: an attention group is a KV head and its queries.

    ``shape`` is that of the block. A plan may list some of these query heads, counted within
    their group; of channels that go from every expert those that all tokens share are told here,
    those of the experts are :attr:`BlockPlan.expert_channels`.
    """
    groups = _indices(block.attention_groups)
    heads = _spread(groups, shape.queries_per_group)
    if block.query_heads:
        inside = torch.tensor(block.query_heads, dtype=torch.int64)
        heads = (groups[:, None] * shape.queries_per_group + inside).reshape(-1)
    ffn = "experts" if shape.num_experts else "ffn_channels"
    shared = {"shared_channels": _indices(block.shared_channels)} if block.shared_channels else {}
    return shared | {
        "kv_heads": _spread(groups, shape.head_dim),
        "query_heads": _spread(heads, shape.head_dim),
        "heads": heads,
        ffn: _indices(block.ffn_units),
    }


def inside_of(axes: Sequence[str], of_each: Mapping[str, Tensor]) -> Inside | None:
    """What stays of a tensor of all experts within each, by :func:`indices_of_each`; None for all.

    ``axes`` are the tensor's.
    """
    if axes[0] != "experts":
        return None
    found = ((place, of_each.get(axis)) for place, axis in enumerate(axes))
    return next((Inside(place, kept) for place, kept in found if kept is not None), None)


def inside_of_class(name: str, matrix: Tensor, channels: Sequence[Sequence[int]]) -> Tensor:
    """What stays within each expert of a tensor ``[experts, ...]``, as most classes have it.

    ``channels`` are those of every expert that stays; none listed: all of them.
    """
    if not channels:
        return matrix
    places = torch.tensor(channels, dtype=torch.int64)
    if name == DOWN:
        return Inside(2, places).of(matrix, 0)
    return Inside(1, torch.cat([places, places + matrix.shape[1] // 2], 1)).of(matrix, 0)


def indices_of_each(block: BlockPlan) -> dict[str, Tensor]:
    """Kept indices by axis within every expert that stays, ``[experts, kept]``; none for all.

    Gate and up of a channel lie in turn (:func:`bipline.model.experts.in_turn`).
    """
    if not block.expert_channels:
        return {}
    channels = torch.tensor(block.expert_channels, dtype=torch.int64)
    pairs = torch.stack([2 * channels, 2 * channels + 1], -1).flatten(1)
    return {"ffn_channels": channels, "gate_up_channels": pairs}


def _indices(kept: Sequence[int]) -> Tensor:
    return torch.tensor(kept, dtype=torch.int64)


def _spread(groups: Tensor, width: int) -> Tensor:
    """Every index inside the kept groups: ``[groups] -> [groups * width]``."""
    return (groups[:, None] * width + torch.arange(width)).reshape(-1)
