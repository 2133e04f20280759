"""Pictures of a pruning as inline SVG: widths kept, and importance per block.

Drawn by hand rather than by a plotting library: the colours follow the page (light or dark),
the same numbers give the same bytes, and the size stays bounded for any width because FFN
channels are drawn as histograms. Kept and removed differ in shape or place as well as in colour.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

# Margins of the drawing area, in SVG units (one unit is about a pixel).
LEFT, RIGHT, TOP, BOTTOM = 58.0, 8.0, 12.0, 40.0
LABEL_WIDTH = 26.0
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


@dataclass(frozen=True)
class Canvas:
    """A drawing area with a column (slot) per block and a vertical axis."""

    width: float
    height: float
    blocks: int
    axis: Axis

    @property
    def slot(self) -> float:
        """The width of one block's column."""
        return (self.width - LEFT - RIGHT) / self.blocks

    @property
    def floor(self) -> float:
        """Where the axis begins, measured from the top."""
        return self.height - BOTTOM

    def middle(self, block: int) -> float:
        """The middle of a block's column."""
        return LEFT + self.slot * (block + 0.5)

    def level(self, value: float) -> float:
        """Where a value lies, measured from the top."""
        return self.floor - self.axis.share(value) * (self.floor - TOP)


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


def widths_picture(kept: Sequence[int], dense: int | None, unit: str) -> Markup:
    """Bars per block: what is kept, solid, of the dense width behind it where that is known."""
    canvas = Canvas(450.0, 210.0, len(kept), Axis(0.0, float(dense or max(*kept, 1)), False))
    width = max(1.0, min(28.0, canvas.slot * 0.7))
    shapes = []
    for block, count in enumerate(kept):
        left = canvas.middle(block) - width / 2
        dense_bar = _rectangle("dense", left, TOP, width, canvas.floor - TOP) if dense else ""
        top = canvas.level(count)
        kept_bar = _rectangle("kept", left, top, width, canvas.floor - top)
        title = f"block {block}: {count}{f' of {dense}' if dense else ''} {unit} kept"
        shapes.append(f"<g><title>{title}</title>{dense_bar}{kept_bar}</g>")
    return _picture(f"{unit} kept per block", canvas, "".join(shapes))


def dots_picture(blocks: Sequence[Group], unit: str) -> Markup:
    """One mark per group and block: a disc where it is kept, a cross where it is removed."""
    axis = axis_over([score for block in blocks for score in block.scores])
    canvas = Canvas(920.0, 300.0, len(blocks), axis)
    radius = max(1.6, min(3.6, canvas.slot / 9))
    shapes = []
    for number, block in enumerate(blocks):
        count = len(block.scores)
        for group, score in enumerate(block.scores):
            # Spread along the column, in the order of the groups, so that equal scores both show.
            x = canvas.middle(number) + 0.7 * canvas.slot * ((group + 0.5) / count - 0.5)
            state = "kept" if group in block.kept else "removed"
            title = f"block {number}, {unit} {group}: {score:.4g}, {state}"
            shapes.append(_mark(x, canvas.level(score), radius, state, title))
    return _picture(f"importance of each {unit}, by block", canvas, "".join(shapes))


def histogram_picture(blocks: Sequence[Group], unit: str) -> Markup:
    """One histogram per block, standing on its middle line; its width is the count."""
    axis = axis_over([score for block in blocks for score in block.scores])
    canvas = Canvas(920.0, 300.0, len(blocks), axis)
    shapes = []
    for number, block in enumerate(blocks):
        title = f"block {number}: {len(block.kept)} of {len(block.scores)} {unit} kept"
        bars = _histogram(canvas, canvas.middle(number), *_counts(block, axis))
        shapes.append(f"<g><title>{title}</title>{bars}</g>")
    return _picture(f"importance of {unit}, by block", canvas, "".join(shapes))


def _counts(block: Group, axis: Axis) -> tuple[list[int], list[int]]:
    kept, removed = [0] * BINS, [0] * BINS
    for index, score in enumerate(block.scores):
        number = min(BINS - 1, max(0, int(axis.share(score) * BINS)))
        (kept if index in block.kept else removed)[number] += 1
    return kept, removed


def _histogram(canvas: Canvas, middle: float, kept: list[int], removed: list[int]) -> str:
    """A bar per bin around the middle line: what is removed, then what is kept."""
    scale = canvas.slot * 0.86 / max(1, *(a + b for a, b in zip(kept, removed, strict=True)))
    step = (canvas.floor - TOP) / BINS
    bars = []
    for number in range(BINS):
        left = middle - (kept[number] + removed[number]) * scale / 2
        top = canvas.floor - step * (number + 1)
        for state, count in (("removed", removed[number]), ("kept", kept[number])):
            if count:
                # A single channel among thousands must still be seen.
                width = max(count * scale, 0.8)
                bars.append(_rectangle(state, left, top, width, step + 0.1))
                left += count * scale
    return "".join(bars)


def _rectangle(state: str, left: float, top: float, width: float, height: float) -> str:
    place = f'x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" height="{height:.1f}"'
    return f'<rect class="{state}" {place}/>'


def _mark(x: float, y: float, radius: float, state: str, title: str) -> str:
    if state == "kept":
        shape = f'<circle class="kept" cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}"/>'
    else:
        corner, side = f"{x - radius:.1f} {y - radius:.1f}", f"{2 * radius:.1f}"
        shape = f'<path class="cross" d="M{corner}l{side} {side}m0 -{side}l-{side} {side}"/>'
    return f"<g><title>{title}</title>{shape}</g>"


def svg(width: float, height: float, label: str, inside: str) -> Markup:
    """An SVG of its own; without a label it is an ornament.

    ``inside`` is drawn by this module's functions or escaped by its maker.
    """
    told = f'role="img" aria-label="{escape(label)}"' if label else 'aria-hidden="true"'
    # Safe to mark: every text from outside went through escape, the rest are numbers.
    return Markup(f'<svg viewBox="0 0 {width:.0f} {height:.0f}" {told}>{inside}</svg>')  # noqa: S704


def words(x: float, y: float, anchor: str, text: str) -> str:
    """A text of an axis, escaped."""
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text class="tick" {place}>{escape(text)}</text>'


def grid(axis: Axis, level: Callable[[float], float], left: float, right: float) -> str:
    """A line for each tick of a vertical axis, with its value to the left."""
    lines = []
    for tick in axis.ticks():
        y = level(tick)
        ends = f'x1="{left:.0f}" x2="{right:.0f}" y1="{y:.1f}" y2="{y:.1f}"'
        lines.append(f'<line class="grid" {ends}/>')
        lines.append(words(left - 8, y + 3.5, "end", _number(tick)))
    return "".join(lines)


def _picture(label: str, canvas: Canvas, shapes: str) -> Markup:
    lines = grid(canvas.axis, canvas.level, LEFT, canvas.width - RIGHT)
    inside = f"{lines}{shapes}{_block_labels(canvas)}"
    return svg(canvas.width, canvas.height, label, inside)


def _block_labels(canvas: Canvas) -> str:
    step = max(1, math.ceil(LABEL_WIDTH / canvas.slot))
    y = canvas.floor + 16
    labels = [
        words(canvas.middle(block), y, "middle", str(block))
        for block in range(0, canvas.blocks, step)
    ]
    middle = (LEFT + canvas.width - RIGHT) / 2
    return "".join([*labels, words(middle, y + 17, "middle", "block")])


def _linear_ticks(low: float, high: float) -> list[float]:
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(f * power for f in (1, 2, 5, 10) if f * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [n * step for n in range(first, math.floor(high / step + 1e-9) + 1)]


def _number(value: float) -> str:
    if value == 0 or 1e-3 <= abs(value) < 1e7:
        return f"{value:,.7g}"
    return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
