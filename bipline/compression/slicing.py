"""Slicing: what a plan keeps of a checkpoint, tensor by tensor, with corrections in their places.

Blocks are numbered anew; a sublayer of which no group stays takes its norm with it. Where the
smaller model has a bias that the source has not, it is the correction's, or zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bipline.base.errors import InvalidInput
from bipline.compression.corrections import Corrections
from bipline.model.checkpoint import TORCH_DTYPES, Checkpoint, widened
from bipline.model.families import build_of, family_of, model_axes, tensor_shapes
from bipline.model.shapes import ModelShape, shape_of
from bipline.model.writer import TensorSpec
from bipline.values.plan import BlockPlan, PruningPlan


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
        self._axes = model_axes(checkpoint.family, checkpoint.config)
        self._kept: dict[str, dict[str, Tensor]] = {}
        for index, block in enumerate(plan.blocks):
            kept = kept_indices(block, checkpoint.shape)
            self._kept.update(dict.fromkeys(checkpoint.block_names(index).values(), kept))
        targets = {name: name for name in self._axes} | new_names(checkpoint, plan)
        # In the order of the source's tensors: what is written, and what it is read from.
        self._sources = {target: source for source, target in targets.items() if target}
        self._added = self._added_shapes(config)
        self._corrected = self._places(plan, corrections) if corrections else {}

    def specs(self) -> list[TensorSpec]:
        """What :meth:`pieces` will give for every tensor, in file order; added ones come last."""
        sliced = [self._spec(name, source) for name, source in self._sources.items()]
        dtype = self._added_dtype()
        return sliced + [TensorSpec(name, dtype, shape) for name, shape in self._added.items()]

    def pieces(
        self, names: Sequence[str], tick: Callable[[], None] = lambda: None
    ) -> Iterator[tuple[str, Tensor]]:
        """Tensors in order, sliced, in pieces of whole rows; ``tick`` is called once for each.

        Their names are those of the smaller model.
        """
        yield from self._sliced([name for name in names if name in self._sources], tick)
        for name in names:
            if name in self._added:
                tick()
                yield name, self._addition(name)

    def _sliced(
        self, names: Sequence[str], tick: Callable[[], None]
    ) -> Iterator[tuple[str, Tensor]]:
        targets = {self._sources[name]: name for name in names}
        wanted = [(source, self._kept_along(source, 0)) for source in targets]
        started = ""
        for source, piece in self.checkpoint.stream(wanted):
            name = targets[source]
            if source != started:
                tick()
                started = source
                if name in self._corrected:
                    yield name, self._corrected[name]()
            # A corrected tensor's source is still read, because the plan is held to its digest.
            if name in self._corrected:
                continue
            columns = self._kept_along(source, 1)
            yield name, piece if columns is None else piece.index_select(1, columns)

    def _kept_along(self, name: str, dimension: int) -> Tensor | None:
        axes = self._axes[name]
        axis = axes[dimension] if dimension < len(axes) else ""
        return self._kept.get(name, {}).get(axis)

    def _spec(self, name: str, source: str) -> TensorSpec:
        dtype, shape = self.checkpoint.tensor_header(source)
        kept, axes = self._kept.get(source, {}), self._axes[source]
        sizes = (len(kept[a]) if a in kept else n for a, n in zip(axes, shape, strict=True))
        return TensorSpec(name, dtype, tuple(sizes))

    def _added_shapes(self, config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        family = family_of(str(config["model_type"]))
        shapes = tensor_shapes(family, config, shape_of(config))
        return {name: shape for name, shape in shapes.items() if name not in self._sources}

    def _added_dtype(self) -> str:
        """Biases are written like the weights of the first block."""
        return self.checkpoint.tensor_header(next(iter(self.checkpoint.block_names(0).values())))[0]

    def _places(
        self, plan: PruningPlan, corrections: Corrections
    ) -> dict[str, Callable[[], Tensor]]:
        """What reads the correction of each of the smaller model's tensors that has one."""
        places: dict[str, Callable[[], Tensor]] = {}
        known = {spec.name: spec.shape for spec in self.specs()}
        for number, index in enumerate(plan.kept_blocks):
            for name, shape in corrections.shapes(index).items():
                target = self.checkpoint.block_prefix(number) + name
                if known.get(target) != shape:
                    raise InvalidInput(
                        f"correction {name} of block {index} has shape {list(shape)}, the smaller "
                        f"model's is {list(known.get(target, ()))}"
                    )
                places[target] = partial(self._correction, corrections, index, name)
        return places

    def _correction(self, corrections: Corrections, index: int, name: str) -> Tensor:
        """A corrected tensor as it is stored: without the multiplier that it was fitted with."""
        tensor, multiplier = corrections.tensor(index, name), self.checkpoint.multipliers.get(name)
        if multiplier is None:
            return tensor
        return (widened(tensor) / multiplier).to(tensor.dtype)

    def _addition(self, name: str) -> Tensor:
        if name in self._corrected:
            return self._corrected[name]()
        return torch.zeros(self._added[name], dtype=TORCH_DTYPES[self._added_dtype()])


def new_names(checkpoint: Checkpoint, plan: PruningPlan) -> dict[str, str]:
    """What the blocks' tensors will be called, by their full names; empty for those that go."""
    names = {}
    for index, block in enumerate(plan.blocks):
        absent = build_of(checkpoint.family).absent(*block.widths)
        number = sum(not before.dropped for before in plan.blocks[:index])
        for name, full in checkpoint.block_names(index).items():
            stays = not name.startswith(absent)
            names[full] = checkpoint.block_prefix(number) + name if stays else ""
    return names


def kept_indices(block: BlockPlan, shape: ModelShape) -> dict[str, Tensor]:
    """Kept row or column indices by axis: an attention group is a KV head and its queries."""
    groups = torch.tensor(block.attention_groups, dtype=torch.int64)
    width = shape.head_dim * shape.queries_per_group
    return {
        "kv_heads": _spread(groups, shape.head_dim),
        "query_heads": _spread(groups, width),
        "ffn_channels": torch.tensor(block.ffn_channels, dtype=torch.int64),
    }


def _spread(groups: Tensor, width: int) -> Tensor:
    """Every channel index of the kept groups: ``[groups] -> [groups * width]``."""
    return (groups[:, None] * width + torch.arange(width)).reshape(-1)
