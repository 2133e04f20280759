"""Pictures of a comparison as inline SVG: curves of methods, and bars of what they cost.

Drawn like those of :mod:`bipline.delivery.pictures`: no library, the same numbers give the same
bytes. Curves differ in colour and in the shape of their marks; every name in them is escaped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from bipline.comparison.spread import Spread
from bipline.delivery.pictures import Axis, axis_over, grid, svg, words

WIDTH, HEIGHT = 920.0, 380.0
LEFT, RIGHT, TOP, BOTTOM = 70.0, 16.0, 14.0, 46.0
RADIUS = 4.0
# Of middling lightness, to be seen on light pages and dark ones.
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
BAR_WIDTH, BAR_STEP = 450.0, 34.0


@dataclass(frozen=True)
class Point:
    """One combination: parameters that are left, and a figure over its seeds."""

    parameters: float
    spread: Spread
    title: str


@dataclass(frozen=True)
class Curve:
    """A method's points, and its number among the methods, which decides how it looks."""

    name: str
    number: int
    points: tuple[Point, ...]


def curves_picture(curves: Sequence[Curve], label: str) -> Markup:
    """A figure (upwards) against parameters (to the right), one curve a method."""
    points = [point for curve in curves for point in curve.points]
    upward = axis_over([value for p in points for value in (p.spread.least, p.spread.most)])
    across = [point.parameters for point in points]
    # Room on both sides, or the first and the last mark would sit on the frame.
    margin = 0.04 * (max(across) - min(across)) or 0.04 * max(across)
    plane = _Plane(Axis(min(across) - margin, max(across) + margin, False), upward)
    shapes = "".join(_curve(plane, curve) for curve in curves)
    lines = grid(upward, plane.y, LEFT, WIDTH - RIGHT)
    inside = f"{lines}{shapes}{_across_labels(plane, 'parameters left, millions')}"
    return svg(WIDTH, HEIGHT, label, inside)


def swatch(number: int) -> Markup:
    """How a method's curve looks, for a legend."""
    line = f'<path {_line(number)} d="M1 7h26"/>'
    return svg(28.0, 14.0, "", line + _mark(number, 14.0, 7.0))


def bars_picture(values: Sequence[tuple[str, float]], label: str, unit: str) -> Markup:
    """A bar a method, with its name above it and its value at its end."""
    highest = max([value for _, value in values], default=0) or 1.0
    shapes = []
    for place, (name, value) in enumerate(values):
        top = place * BAR_STEP
        width = max(1.0, value / highest * (BAR_WIDTH - 90))
        number = f"{value:,.1f} {unit}"
        shapes.append(
            f"{words(0, top + 11, 'start', name)}"
            f'<rect class="kept" x="0.0" y="{top + 15:.1f}" width="{width:.1f}" height="10.0"/>'
            f"{words(width + 6, top + 24, 'start', number)}"
        )
    return svg(BAR_WIDTH, max(1, len(values)) * BAR_STEP, label, "".join(shapes))


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
    places = [(plane.x(p.parameters), plane.y(p.spread.mean), p) for p in curve.points]
    line = "L".join(f"{x:.1f} {y:.1f}" for x, y, _ in places)
    shapes = [f'<path {_line(curve.number)} d="M{line}"/>'] if len(places) > 1 else []
    for x, y, point in places:
        low, high = plane.y(point.spread.least), plane.y(point.spread.most)
        whisker = f'<path {_line(curve.number)} d="M{x:.1f} {low:.1f}V{high:.1f}"/>'
        mark = _mark(curve.number, x, y)
        title = f"<title>{escape(point.title)}</title>"
        shapes.append(f"<g>{title}{whisker if low != high else ''}{mark}</g>")
    return "".join(shapes)


def _line(number: int) -> str:
    dash = DASHES[number // len(COLOURS) % len(DASHES)]
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    colour = COLOURS[number % len(COLOURS)]
    return f'fill="none" stroke="{colour}" stroke-width="1.8"{dashed}'


def _mark(number: int, x: float, y: float) -> str:
    size = {"x": x, "y": y, "l": x - RADIUS, "t": y - RADIUS, "r": RADIUS, "d": 2 * RADIUS}
    shape = MARKS[number % len(MARKS)].format(**{k: f"{v:.1f}" for k, v in size.items()})
    return f'<path fill="{COLOURS[number % len(COLOURS)]}" d="{shape}"/>'


def _across_labels(plane: _Plane, name: str) -> str:
    y = HEIGHT - BOTTOM + 18
    labels = [
        words(plane.x(tick), y, "middle", f"{tick / 1e6:,.6g}") for tick in plane.across.ticks()
    ]
    middle = (LEFT + WIDTH - RIGHT) / 2
    return "".join([*labels, words(middle, y + 18, "middle", name)])
