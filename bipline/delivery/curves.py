"""Curves as inline SVG: of methods over sizes, of a training over its steps.

Drawn like :mod:`bipline.delivery.pictures`: no library, the same numbers give the same bytes.
Curves differ in colour, and without any in the shape of their marks and their dashes; every name
in them is escaped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from bipline.delivery.axes import Axis, axis_around, number_text
from bipline.delivery.pictures import axis_title, grid, svg, words

WIDTH, HEIGHT = 440.0, 300.0
LEFT, RIGHT, TOP, BOTTOM = 62.0, 14.0, 34.0, 46.0
RADIUS = 4.2
# Of middling lightness: three times as dark as a light page, three times as light as a dark one.
COLOURS = (
    "#1f77d0", "#d4691a", "#2a9d4f", "#b5338a", "#8a6d00", "#6f5bd6", "#c23b3b", "#0f8f8f",
)  # fmt: skip
MARKS = (
    "M{l} {y}a{r} {r} 0 1 0 {d} 0a{r} {r} 0 1 0 -{d} 0z",
    "M{l} {t}h{d}v{d}h-{d}z",
    "M{x} {t}l{r} {d}h-{d}z",
    "M{x} {t}l{r} {r}l-{r} {r}l-{r} -{r}z",
)
DASHES = ("", "7 4", "2 3")
# A training has a point for every step it tells of; marks then would hide the line.
MOST_MARKS = 24


@dataclass(frozen=True)
class Point:
    """A value ``y`` at ``x``, between ``low`` and ``high``, and what to tell of it."""

    x: float
    y: float
    low: float
    high: float
    title: str


@dataclass(frozen=True)
class Curve:
    """Points in order, and a number among the curves, which decides how they look."""

    name: str
    number: int
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Frame:
    """What a picture of curves says around them.

    ``across`` and ``upward`` name the axes; ``tick`` writes a value of the axis to the right;
    ``level`` is a name and a value to draw a line across at.
    """

    label: str
    across: str
    upward: str
    tick: Callable[[float], str] = number_text
    level: tuple[str, float] | None = None


def curves_picture(curves: Sequence[Curve], frame: Frame) -> Markup:
    """The curves, each with its marks, and a line through a mark from its low to its high end."""
    points = [point for curve in curves for point in curve.points]
    heights = [value for p in points for value in (p.low, p.y, p.high)]
    heights += [frame.level[1]] if frame.level else []
    plane = _Plane(axis_around([point.x for point in points]).linear, axis_around(heights))
    shapes = "".join(_curve(plane, curve) for curve in curves)
    lines = grid(plane.upward, plane.y, LEFT, WIDTH - RIGHT)
    level = _level(plane, *frame.level) if frame.level else ""
    labels = f"{axis_title(plane.upward, frame.upward)}{_across_labels(plane, frame)}"
    return svg(WIDTH, HEIGHT, frame.label, f"{labels}{lines}{level}{shapes}")


def swatch(number: int) -> Markup:
    """How a curve looks, for a legend."""
    line = f'<path {_line(number)} d="M1 7h26"/>'
    return svg(28.0, 14.0, "", line + _mark(number, 14.0, 7.0))


@dataclass(frozen=True)
class _Plane:
    """A drawing area with two axes."""

    across: Axis
    upward: Axis

    def x(self, value: float) -> float:
        return LEFT + self.across.share(value) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - self.upward.share(value) * (HEIGHT - BOTTOM - TOP)


def _curve(plane: _Plane, curve: Curve) -> str:
    places = [(plane.x(p.x), plane.y(p.y), p) for p in curve.points]
    line = "L".join(f"{x:.1f} {y:.1f}" for x, y, _ in places)
    shapes = [f'<path {_line(curve.number)} d="M{line}"/>'] if len(places) > 1 else []
    marked = places if len(places) <= MOST_MARKS else [places[0], places[-1]]
    for x, y, point in marked:
        low, high = plane.y(point.low), plane.y(point.high)
        whisker = f'<path {_line(curve.number, "")} d="M{x:.1f} {low:.1f}V{high:.1f}"/>'
        mark = _mark(curve.number, x, y)
        title = f"<title>{escape(point.title)}</title>"
        shapes.append(f"<g>{title}{whisker if low != high else ''}{mark}</g>")
    return "".join(shapes)


def _level(plane: _Plane, name: str, value: float) -> str:
    y = plane.y(value)
    line = f'<path class="mean" d="M{LEFT:.0f} {y:.1f}H{WIDTH - RIGHT:.0f}"/>'
    return line + words(LEFT + 4, y - 5, "start", name)


def _line(number: int, dash: str | None = None) -> str:
    # Where eight colours look alike in grey, a mark and a dash together tell twelve apart.
    dash = DASHES[number // len(MARKS) % len(DASHES)] if dash is None else dash
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    colour = COLOURS[number % len(COLOURS)]
    return f'fill="none" stroke="{colour}" stroke-width="1.8"{dashed}'


def _mark(number: int, x: float, y: float) -> str:
    size = {"x": x, "y": y, "l": x - RADIUS, "t": y - RADIUS, "r": RADIUS, "d": 2 * RADIUS}
    shape = MARKS[number % len(MARKS)].format(**{k: f"{v:.1f}" for k, v in size.items()})
    return f'<path fill="{COLOURS[number % len(COLOURS)]}" d="{shape}"/>'


def _across_labels(plane: _Plane, frame: Frame) -> str:
    y = HEIGHT - BOTTOM + 18
    labels = [words(plane.x(tick), y, "middle", frame.tick(tick)) for tick in plane.across.ticks(5)]
    middle = (LEFT + WIDTH - RIGHT) / 2
    return "".join([*labels, words(middle, y + 20, "middle", frame.across)])
