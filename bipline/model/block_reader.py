"""The weights of one block after the other, in memory that is allocated once.

Two places hold a block each: while one is computed with, the next block is read into the other,
hashed and converted to the computing dtype by a thread of its own. So the memory of a model is
the memory of two of its blocks, however many it has.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from math import prod

import torch
from torch import Tensor

from bipline.model.checkpoint import TORCH_DTYPES, Checkpoint
from bipline.model.devices import SLOTS, Transfer
from bipline.model.module_weights import module_shapes

Weights = dict[str, Tensor]
Shapes = dict[str, tuple[int, ...]]
# Tensors begin at multiples of this many elements, so that vector instructions are aligned.
ALIGNMENT = 64


class BlockReader:
    """Reads blocks of a checkpoint in ``dtype`` onto ``device``, one ahead of their use."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        dtype: torch.dtype,
        device: torch.device,
        by_transfer: bool | None = None,
    ) -> None:
        self.checkpoint = checkpoint
        self.dtype = dtype
        self.device = device
        self._by_transfer = device.type != "cpu" if by_transfer is None else by_transfer
        self._shapes = block_shapes(checkpoint)
        self._multipliers = checkpoint.multipliers

    @property
    def elements(self) -> int:
        """Elements of one place: the largest block's weights, each at an aligned element."""
        return place_elements(self._shapes)

    def blocks(self, indices: Iterable[int]) -> Iterator[tuple[int, Weights]]:
        """Blocks by index. A block's tensors are overwritten when the next one is taken."""
        order = list(indices)
        places = [self._host_place() for _ in range(min(SLOTS, len(order)))]
        transfer = Transfer(self.elements, self.dtype, self.device) if self._by_transfer else None
        with ThreadPoolExecutor(1, "read-ahead") as reading:
            coming = [reading.submit(self._load, order, 0, places, transfer)] if order else []
            for turn, index in enumerate(order):
                coming.pop().result()
                # Whoever used the block before this one came back for more, so its place is free.
                if turn + 1 < len(order):
                    coming.append(reading.submit(self._load, order, turn + 1, places, transfer))
                slot = turn % SLOTS
                place = transfer.arrived(slot) if transfer else places[slot]
                yield index, self._views(index, place)
                if transfer:
                    transfer.release(slot)

    def block(self, index: int) -> Weights:
        """One block in memory of its own, for work out of order."""
        place = self._host_place()
        self._fill(index, place)
        return self._views(index, place.to(self.device))

    def _load(
        self, order: list[int], turn: int, places: list[Tensor], transfer: Transfer | None
    ) -> None:
        slot = turn % SLOTS
        if transfer:
            transfer.host_is_free(slot)
        self._fill(order[turn], places[slot])
        if transfer:
            transfer.send(places[slot], slot)
        if turn + 1 < len(order):
            self._announce(order[turn + 1])

    def _fill(self, index: int, place: Tensor) -> None:
        views, places = self._taken(index, place), self.checkpoint.block_places(index)
        for name, full in self.checkpoint.stored_names(index).items():
            view = places[name].of(views[places[name].name])
            if TORCH_DTYPES[self.checkpoint.tensors[full].dtype] == self.dtype:
                self.checkpoint.read_into(full, view)
            else:
                view.copy_(self.checkpoint.tensor(full))
        held = self.checkpoint.split(index, views)
        for name in self._multipliers.keys() & held.keys():
            held[name].mul_(self._multipliers[name])

    def _announce(self, index: int) -> None:
        for full in self.checkpoint.stored_names(index).values():
            self.checkpoint.will_read(full)

    def _host_place(self) -> Tensor:
        return torch.empty(self.elements, dtype=self.dtype, pin_memory=self.device.type == "cuda")

    def _views(self, index: int, place: Tensor) -> Weights:
        return self.checkpoint.split(index, self._taken(index, place))

    def _taken(self, index: int, place: Tensor) -> Weights:
        """What a block's class takes, each tensor where it lies in ``place``."""
        views, start = {}, 0
        for name, shape in self._shapes[index].items():
            views[name] = place[start : start + prod(shape)].view(shape)
            start += _aligned(prod(shape))
        return views


def _aligned(elements: int) -> int:
    return -(-elements // ALIGNMENT) * ALIGNMENT


def block_shapes(checkpoint: Checkpoint) -> list[Shapes]:
    """The shapes of what the class of every block takes, by the names inside it."""
    found = []
    for index in range(checkpoint.shape.num_hidden_layers):
        names = checkpoint.stored_names(index)
        stored = {name: checkpoint.tensors[full].shape for name, full in names.items()}
        found.append(module_shapes(checkpoint.block_places(index), stored))
    return found


def place_elements(shapes: Iterable[Shapes]) -> int:
    """Elements of the largest of these blocks, each of its tensors at an aligned element."""
    return max(sum(_aligned(prod(shape)) for shape in each.values()) for each in shapes)
