"""From tensors as they lie on disk to those that transformers' block takes.

Most are the same. A mixture of experts lies expert by expert, and its class takes the matrices of
all its experts in one tensor: gate and up of one after the other, ``[experts, 2 f, d]``, and down,
``[experts, d, f]``. This is the one place that knows; what computes has tensors as the class has
them, what is written lies as it was read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from torch import Tensor

from bipline.model.families import Family, block_axes, block_parts, build_of
from bipline.model.shapes import shape_of

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Place:
    """Where a stored tensor lies in a tensor of the class: whole, or rows of one expert."""

    name: str
    expert: int | None = None
    first: int = 0
    rows: int = 0

    def of(self, tensor: Tensor) -> Tensor:
        """The stored tensor's part of the class's, which it can be written into."""
        if self.expert is None:
            return tensor
        return tensor[self.expert, self.first : self.first + self.rows]


def block_places(family: Family, config: Mapping[str, Any], index: int = 0) -> dict[str, Place]:
    """Where what is stored of a block goes, by its name inside it.

    What lies as one and is several tensors of the build is one of the class's too.
    """
    shape, axes = shape_of(config).block(index), block_axes(family, config, index)
    stacked: dict[str, Place] = {}
    for name, parts in build_of(family).stacked.items():
        for expert, (number, part) in product(range(shape.num_experts), enumerate(parts)):
            held = part.format(expert=expert)
            if held in axes:
                # The parts of one tensor are equally high.
                rows = shape.axis_size(axes[held][0])
                stacked[held] = Place(name, expert, number * rows, rows)
    return {
        stored: stacked.get(parts[0], Place(stored if _as_stored(family, stored) else parts[0]))
        for stored, parts in block_parts(family, config, index).items()
    }


def _as_stored(family: Family, name: str) -> bool:
    """Whether its class calls something as it is stored."""
    return name.rpartition(".")[0] in family.fused


def model_places(family: Family, config: Mapping[str, Any]) -> dict[str, Place]:
    """The same for all blocks, by full names; what lies outside of blocks is not there."""
    found = {}
    for index in range(shape_of(config).num_hidden_layers):
        prefix = build_of(family).block_prefix.format(index=index)
        for stored, place in block_places(family, config, index).items():
            full = Place(prefix + place.name, place.expert, place.first, place.rows)
            found[prefix + stored] = full
    return found


def module_shapes(places: Mapping[str, Place], shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """The shapes of the class's tensors from those of stored ones."""
    found: dict[str, Shape] = {}
    for stored, place in places.items():
        if place.expert is None:
            found[place.name] = shapes[stored]
            continue
        experts, rows, _ = found.get(place.name, (0, 0, 0))
        most = max(experts, place.expert + 1), max(rows, place.first + place.rows)
        found[place.name] = (*most, shapes[stored][1])
    return found


def module_weights(
    places: Mapping[str, Place], stored: Iterable[tuple[str, Tensor]]
) -> dict[str, Tensor]:
    """The class's tensors from stored ones, which are taken one after the other.

    Those that lie as the class has them are no copies. Experts' have the dtype of the first.
    """
    held: dict[str, Tensor] = {}
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in stored:
        place = places[name]
        if place.expert is None:
            held[place.name] = tensor
        else:
            parts.setdefault(place.name, {})[name] = tensor
    for name, of_experts in parts.items():
        here = {each: places[each] for each in of_experts}
        shape = module_shapes(here, {each: tuple(t.shape) for each, t in of_experts.items()})[name]
        held[name] = next(iter(of_experts.values())).new_empty(shape)
        for each, tensor in of_experts.items():
            here[each].of(held[name]).copy_(tensor)
    return held


def stored_weights(places: Mapping[str, Place], held: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The class's tensors as they lie on disk, no copies; those that no place names stay."""
    named = {place.name for place in places.values()}
    others = {name: tensor for name, tensor in held.items() if name not in named}
    there = {name: each for name, each in places.items() if each.name in held}
    return {name: each.of(held[each.name]).detach() for name, each in there.items()} | others
