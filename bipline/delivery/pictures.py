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

from bipline.delivery.axes import Axis, axis_over, number_text

# Margins of the drawing area, in SVG units (one unit is about a pixel).
LEFT, RIGHT, TOP, BOTTOM = 62.0, 8.0, 34.0, 42.0
LABEL_WIDTH = 30.0
BINS = 40
IMPORTANCE = "importance (score of the criterion)"
# A picture is as wide as its blocks need, between these; texts of 12.5 units then are 11 pixels
# high or more on every page: on a narrow one a wide picture is scrolled.
LEAST_WIDTH, MOST_WIDTH, SLOT = 440.0, 920.0, 44.0
LEAST_SCALE, MOST_SCALE = 0.88, 1.15
# Of so few blocks two pictures stand beside each other.
FEW_BLOCKS = 8


@dataclass(frozen=True)
class Group:
    """Scores of one block, and which of them the plan keeps."""

    scores: tuple[float, ...]
    kept: frozenset[int]


@dataclass(frozen=True)
class Canvas:
    """A drawing area with a column (slot) per block and a vertical axis."""

    height: float
    blocks: int
    axis: Axis
    slot_width: float = SLOT

    @property
    def width(self) -> float:
        """As wide as the blocks need."""
        needed = LEFT + RIGHT + self.blocks * self.slot_width
        return min(MOST_WIDTH, max(LEAST_WIDTH, needed))

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


def widths_picture(kept: Sequence[int | None], dense: int | None, unit: str) -> Markup:
    """Bars per block: what is kept, solid, of the dense width behind it where that is known.

    None for a block that has none of these units, which has no bar.
    """
    most = max(1, *(count or 0 for count in kept))
    canvas = Canvas(220.0, len(kept), Axis(0.0, float(dense or most), False), 12.0)
    width = max(1.0, min(28.0, canvas.slot * 0.7))
    shapes = []
    for block, count in enumerate(kept):
        if count is None:
            continue
        left = canvas.middle(block) - width / 2
        dense_bar = _rectangle("dense", left, TOP, width, canvas.floor - TOP) if dense else ""
        top = canvas.level(count)
        kept_bar = _rectangle("kept", left, top, width, canvas.floor - top)
        title = f"block {block}: {count}{f' of {dense}' if dense else ''} {unit} kept"
        shapes.append(f"<g><title>{title}</title>{dense_bar}{kept_bar}</g>")
    return _picture(f"{unit} kept per block", canvas, "".join(shapes), f"{unit} kept")


def dots_picture(blocks: Sequence[Group], unit: str) -> Markup:
    """One mark per group and block: a disc where it is kept, a cross where it is removed."""
    axis = axis_over([score for block in blocks for score in block.scores])
    canvas = Canvas(320.0, len(blocks), axis)
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
    return _picture(f"importance of each {unit}, by block", canvas, "".join(shapes), IMPORTANCE)


def histogram_picture(blocks: Sequence[Group], unit: str) -> Markup:
    """One histogram per block, standing on its middle line; its width is the count."""
    axis = axis_over([score for block in blocks for score in block.scores])
    canvas = Canvas(320.0, len(blocks), axis)
    shapes = []
    for number, block in enumerate(blocks):
        title = f"block {number}: {len(block.kept)} of {len(block.scores)} {unit} kept"
        bars = _histogram(canvas, canvas.middle(number), *_counts(block, axis))
        shapes.append(f"<g><title>{title}</title>{bars}</g>")
    return _picture(f"importance of {unit}, by block", canvas, "".join(shapes), IMPORTANCE)


def errors_picture(without: Sequence[float], errors: Sequence[float]) -> Markup:
    """What is left of each block's error: a ring without compensation, a disc with it."""
    canvas = Canvas(260.0, len(errors), axis_over([*without, *errors]), 24.0)
    shapes = []
    for block, (before, after) in enumerate(zip(without, errors, strict=True)):
        x, high, low = canvas.middle(block), canvas.level(before), canvas.level(after)
        title = f"block {block}: {before:.4g} without, {after:.4g} with compensation"
        shapes.append(
            f"<g><title>{title}</title>"
            f'<path class="reached" d="M{x:.1f} {high:.1f}V{low:.1f}"/>'
            f'<circle class="ring" cx="{x:.1f}" cy="{high:.1f}" r="4.4"/>'
            f'<circle class="kept" cx="{x:.1f}" cy="{low:.1f}" r="4.0"/></g>'
        )
    label = "error of each block without and with compensation"
    return _picture(label, canvas, "".join(shapes), "error on held-out windows")


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
    """An SVG of its own, as wide as its texts can be read; without a label it is an ornament.

    ``inside`` is drawn by this room's functions or escaped by its maker.
    """
    told = 'aria-hidden="true"'
    if label:
        sizes = f"min-width:{width * LEAST_SCALE:.0f}px;max-width:{width * MOST_SCALE:.0f}px"
        told = f'role="img" aria-label="{escape(label)}" style="{sizes}"'
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
        lines.append(words(left - 8, y + 4.2, "end", number_text(tick)))
    return "".join(lines)


def axis_title(axis: Axis, text: str) -> str:
    """What the vertical axis counts, above it, where it needs no turned letters."""
    return words(2.0, 14.0, "start", f"{text}, logarithmic" if axis.logarithmic else text)


def _picture(label: str, canvas: Canvas, shapes: str, counted: str) -> Markup:
    lines = grid(canvas.axis, canvas.level, LEFT, canvas.width - RIGHT)
    title = axis_title(canvas.axis, counted)
    inside = f"{title}{lines}{shapes}{_block_labels(canvas)}"
    return svg(canvas.width, canvas.height, label, inside)


def _block_labels(canvas: Canvas) -> str:
    step = max(1, math.ceil(LABEL_WIDTH / canvas.slot))
    y = canvas.floor + 17
    labels = [
        words(canvas.middle(block), y, "middle", str(block))
        for block in range(0, canvas.blocks, step)
    ]
    middle = (LEFT + canvas.width - RIGHT) / 2
    return "".join([*labels, words(middle, y + 19, "middle", "block")])
