"""Target: the most that the smaller model may come to, in parameters or in bytes.

Every allocation is asked for a ratio. The one that is asked comes from plain widths that meet the
target; what the allocation then finds is fitted to the target step by step, so that it meets it and
one step more of any block would not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from bipline.base.errors import InvalidInput
from bipline.compression.allocation.uniform import largest_ratio, uniform_widths
from bipline.compression.allocation.widths import Choices, Widths

# What a model of these widths comes to.
Measure = Callable[[Sequence[Widths]], int]
# Halvings of the span of ratios: finer than a channel of any model.
HALVINGS = 30


@dataclass(frozen=True)
class Target:
    """At most ``most`` by ``measure``; ``name`` is the setting it was asked by."""

    name: str
    most: int
    measure: Measure

    def ratio(self, choices: Sequence[Choices]) -> float:
        """The share of the blocks' linear weights that goes where all lose alike.

        Raises InvalidInput for a target out of reach, with the smallest and the largest there is.
        """
        smallest = self.measure([each.narrowest for each in choices])
        whole = self.measure([each.widest for each in choices])
        if not smallest <= self.most < whole:
            raise InvalidInput(
                f"{self.name} {self.most:,} is out of reach: the smallest that can be made is "
                f"{smallest:,}, and the model itself has {whole:,}"
            )
        least, most = 0.0, min(largest_ratio(each) for each in choices if each.most_removed)
        open_weights = sum(each.shape.block_weights for each in choices if each.most_removed)
        share = open_weights / sum(each.shape.block_weights for each in choices)
        for _ in range(HALVINGS):
            middle = (least + most) / 2
            if self.measure([_alike(each, middle) for each in choices]) <= self.most:
                most = middle
            else:
                least = middle
        return most * share

    def fitted(
        self, choices: Sequence[Choices], widths: Sequence[Widths], alike: bool
    ) -> list[Widths]:
        """Widths narrowed until they meet the target, then widened as long as they do.

        ``alike``: a step is one of all blocks together.
        """
        found = list(widths)
        while self.measure(found) > self.most:
            found = next(_narrower(choices, found, alike))
        while wider := self._wider(choices, found, alike):
            found = wider
        return found

    def _wider(
        self, choices: Sequence[Choices], widths: Sequence[Widths], alike: bool
    ) -> list[Widths] | None:
        """One step wider, where one still meets the target."""
        steps = _wider(choices, widths, alike)
        return next((step for step in steps if self.measure(step) <= self.most), None)


def _alike(choices: Choices, ratio: float) -> Widths:
    return uniform_widths(choices, ratio) if choices.most_removed else choices.widest


def _narrower(
    choices: Sequence[Choices], widths: Sequence[Widths], alike: bool
) -> Iterator[list[Widths]]:
    """A step narrower: channels first, of the block that keeps most, then attention."""
    order = sorted(range(len(widths)), key=lambda index: -widths[index].ffn_units)
    yield from _steps(choices, widths, alike, order, -1)


def _wider(
    choices: Sequence[Choices], widths: Sequence[Widths], alike: bool
) -> Iterator[list[Widths]]:
    """A step wider: channels first, of the block that keeps fewest, then attention."""
    order = sorted(range(len(widths)), key=lambda index: widths[index].ffn_units)
    yield from _steps(choices, widths, alike, order, 1)


def _steps(
    choices: Sequence[Choices],
    widths: Sequence[Widths],
    alike: bool,
    order: Sequence[int],
    by: int,
) -> Iterator[list[Widths]]:
    moved = [range(len(widths))] if alike else [[index] for index in order]
    for kind in (_channels_moved, _attention_moved):
        for indices in moved:
            found = list(widths)
            for index in indices:
                found[index] = kind(choices[index], widths[index], by)
            if found != list(widths):
                yield found


def _channels_moved(choices: Choices, widths: Widths, by: int) -> Widths:
    channels = _moved(choices.ffn_units, widths.ffn_units, by)
    return choices.widths(choices.attention_of(widths), channels)


def _attention_moved(choices: Choices, widths: Widths, by: int) -> Widths:
    units = _moved(choices.attention.counts, choices.attention_of(widths), by)
    return choices.widths(units, widths.ffn_units)


def _moved(allowed: Sequence[int], count: int, by: int) -> int:
    place = allowed.index(count) + by
    return allowed[place] if 0 <= place < len(allowed) else count
