"""Pictures of a pruning as inline SVG: widths kept, and importance per block.

Drawn by hand rather than by a plotting library: the colours follow the page (light or dark),
the same numbers give the same bytes, and the size stays bounded for any width because FFN
channels are drawn as histograms. Kept and removed differ in shape or place as well as in colour.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

# The drawing area inside the picture, in SVG units (one unit is about a pixel).
WIDTH, HEIGHT = 920.0, 300.0
LEFT, RIGHT, TOP, BOTTOM = 64.0, 8.0, 14.0, 40.0
BINS = 40
# Positive scores that span more than this factor are drawn on a logarithmic axis.
LOG_FACTOR = 20.0


@dataclass(frozen=True)
class Group:
    """Scores of one block, and which of them the plan keeps."""

    scores: tuple[float, ...]
    kept: frozenset[int]


@dataclass(frozen=True)
class Axis:
    """A vertical axis from ``low`` to ``high``; zeros lie on the floor of a logarithmic one."""

    low: float
    high: float
    logarithmic: bool

    def share(self, value: float) -> float:
        """How high a value lies, from 0 at the floor to 1."""
        if self.logarithmic:
            if value <= self.low:
                return 0.0
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        """Values to write beside the axis: few, and round ones."""
        if not self.logarithmic:
            return _linear_ticks(self.low, self.high)
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        factors = (1, 2, 5) if last - first <= 3 else (1,)
        step = max(1, math.ceil((last - first) / 8))
        values = [f * 10.0**e for e in range(first, last + 1, step) for f in factors]
        return [value for value in values if self.low <= value <= self.high * 1.0001]


def axis_over(values: Sequence[float]) -> Axis:
    """The axis that shows these scores: logarithmic where they span more than a factor of 20."""
    positive = [value for value in values if value > 0]
    if not positive:
        return Axis(0.0, 1.0, False)
    low, high = min(positive), max(positive)
    if min(values) < 0:
        return Axis(min(values), max(high, min(values) + 1e-12), False)
    if high / low > LOG_FACTOR:
        return Axis(low / 1.15, high * 1.15, True)
    return Axis(0.0, high * 1.05, False)


def widths_picture(kept: Sequence[int], dense: int, unit: str) -> Markup:
    """Bars per block: what is kept, solid, of the dense width behind it."""
    axis = Axis(0.0, float(dense), False)
    slot = _slot(len(kept))
    width = max(1.0, min(40.0, slot * 0.72))
    shapes = []
    for index, count in enumerate(kept):
        left = LEFT + slot * (index + 0.5) - width / 2
        top = _height(axis, count)
        shapes.append(
            f'<g><title>block {index}: {count} of {dense} {unit} kept</title>'
            f'<rect class="dense" x="{left:.1f}" y="{TOP:.1f}" width="{width:.1f}" '
            f'height="{HEIGHT - BOTTOM - TOP:.1f}"/>'
            f'<rect class="kept" x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" '
            f'height="{HEIGHT - BOTTOM - top:.1f}"/></g>'
        )
    return _picture(f"{unit} kept per block", axis, len(kept), "".join(shapes))


def dots_picture(blocks: Sequence[Group], unit: str) -> Markup:
    """One mark per group and block: a disc where it is kept, a cross where it is removed."""
    axis = axis_over([score for block in blocks for score in block.scores])
    slot = _slot(len(blocks))
    shapes = []
    for index, block in enumerate(blocks):
        count = len(block.scores)
        for group, score in enumerate(block.scores):
            # Spread along the slot, in the order of the groups, so that equal scores both show.
            x = LEFT + slot * (index + 0.5 + 0.7 * ((group + 0.5) / count - 0.5))
            state = "kept" if group in block.kept else "removed"
            title = f"block {index}, {unit} {group}: {score:.4g}, {state}"
            shapes.append(_mark(x, _height(axis, score), state, title))
    return _picture(f"importance of each {unit}, by block", axis, len(blocks), "".join(shapes))


def histogram_picture(blocks: Sequence[Group], unit: str) -> Markup:
    """One histogram per block, standing on its middle line; its width is the count."""
    axis = axis_over([score for block in blocks for score in block.scores])
    slot = _slot(len(blocks))
    shapes = []
    for index, block in enumerate(blocks):
        kept, removed = _counts(block, axis)
        scale = slot * 0.86 / max(1, *(a + b for a, b in zip(kept, removed, strict=True)))
        middle = LEFT + slot * (index + 0.5)
        title = f"block {index}: {len(block.kept)} of {len(block.scores)} {unit} kept"
        bars = "".join(
            _bar(middle, number, kept[number] * scale, removed[number] * scale)
            for number in range(BINS)
        )
        shapes.append(f"<g><title>{title}</title>{bars}</g>")
    return _picture(f"importance of {unit}, by block", axis, len(blocks), "".join(shapes))


def _counts(block: Group, axis: Axis) -> tuple[list[int], list[int]]:
    kept, removed = [0] * BINS, [0] * BINS
    for index, score in enumerate(block.scores):
        number = min(BINS - 1, max(0, int(axis.share(score) * BINS)))
        (kept if index in block.kept else removed)[number] += 1
    return kept, removed


def _bar(middle: float, number: int, kept: float, removed: float) -> str:
    """One bin: what is removed and what is kept lie side by side around the middle line."""
    step = (HEIGHT - TOP - BOTTOM) / BINS
    top = HEIGHT - BOTTOM - step * (number + 1)
    left = middle - (kept + removed) / 2
    parts = ((("removed", left, removed)), ("kept", left + removed, kept))
    return "".join(
        f'<rect class="{state}" x="{x:.1f}" y="{top:.2f}" width="{max(width, 0.6):.1f}" '
        f'height="{step + 0.1:.2f}"/>'
        for state, x, width in parts
        if width
    )


def _mark(x: float, y: float, state: str, title: str) -> str:
    if state == "kept":
        shape = f'<circle class="kept" cx="{x:.1f}" cy="{y:.1f}" r="3.4"/>'
    else:
        shape = (
            f'<path class="cross" d="M{x - 3.2:.1f} {y - 3.2:.1f}l6.4 6.4m0 -6.4l-6.4 6.4"/>'
        )
    return f"<g><title>{title}</title>{shape}</g>"


def _picture(label: str, axis: Axis, blocks: int, shapes: str) -> Markup:
    """Frame, grid and axes around shapes; every text in it is a number or a word of this file."""
    # Safe to mark: labels are constants and everything else is formatted numbers.
    return Markup(
        f'<svg viewBox="0 0 {WIDTH:.0f} {HEIGHT:.0f}" role="img" aria-label="{label}">'
        f"{_grid(axis)}{shapes}{_block_labels(blocks)}</svg>"
    )


def _grid(axis: Axis) -> str:
    lines = []
    for tick in axis.ticks():
        y = _height(axis, tick)
        lines.append(
            f'<line class="grid" x1="{LEFT:.0f}" x2="{WIDTH - RIGHT:.0f}" '
            f'y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text class="tick" x="{LEFT - 8:.0f}" y="{y + 3.5:.1f}" '
            f'text-anchor="end">{_number(tick)}</text>'
        )
    return "".join(lines)


def _block_labels(blocks: int) -> str:
    step = max(1, math.ceil(blocks / 24))
    slot = _slot(blocks)
    y = HEIGHT - BOTTOM + 16
    labels = "".join(
        f'<text class="tick" x="{LEFT + slot * (index + 0.5):.1f}" y="{y:.0f}" '
        f'text-anchor="middle">{index}</text>'
        for index in range(0, blocks, step)
    )
    middle = (LEFT + WIDTH - RIGHT) / 2
    name = f'<text class="tick" x="{middle:.0f}" y="{y + 18:.0f}" text-anchor="middle">block</text>'
    return labels + name


def _slot(blocks: int) -> float:
    return (WIDTH - LEFT - RIGHT) / blocks


def _height(axis: Axis, value: float) -> float:
    return HEIGHT - BOTTOM - axis.share(value) * (HEIGHT - TOP - BOTTOM)


def _linear_ticks(low: float, high: float) -> list[float]:
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(f * power for f in (1, 2, 5, 10) if f * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [n * step for n in range(first, math.floor(high / step + 1e-9) + 1)]


def _number(value: float) -> str:
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:,.6g}"
    return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
