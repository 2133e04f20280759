"""The section ``growth``: seconds and memory against blocks, hidden size and tokens.

One size changes at a time around a common middle. Every point is a ``bipline prune`` of its own,
from a dropped page cache; of its stages ``score`` and ``prune`` count.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.fits import Curve, Fit, draw, exponent, fit
from benchmarks.main_job import ON_CPU, RATIO, WORKING_STAGES
from benchmarks.running import SEQLEN, prune
from benchmarks.session import Session
from benchmarks.tables import NOTHING, Section, Table, gigabytes_text, percent_text, seconds_text

SHAPE = "small"
REPEATS = 2
THEORY = (
    "theory: seconds are linear in blocks and in tokens and quadratic in hidden size, once fixed "
    "costs are small; memory is that of two blocks and the hidden states, so flat in blocks"
)
# The power that theory expects of seconds; the fit is a + b * size ** power.
POWERS = {"blocks": 1, "hidden_size": 2, "tokens": 1}
AXES = {"blocks": "blocks", "hidden_size": "hidden size", "tokens": "tokens"}


@dataclass(frozen=True)
class Point:
    """The sizes of one measurement; the other widths are in proportion to the hidden size."""

    blocks: int
    hidden_size: int
    tokens: int


MIDDLE = Point(blocks=8, hidden_size=1024, tokens=4096)
SIZES = {
    "blocks": (2, 4, 8, 16),
    "hidden_size": (512, 1024, 2048),
    "tokens": (1024, 2048, 4096, 8192, 16384),
}
QUICK_MIDDLE = Point(blocks=8, hidden_size=512, tokens=1024)
QUICK_SIZES = {"blocks": (2, 4, 8), "hidden_size": (256, 512), "tokens": (1024, 4096)}


def growth_section(session: Session) -> Section:
    """Measure all points, fit each axis, draw the picture."""
    quick = session.settings.quick
    middle, sizes = (QUICK_MIDDLE, QUICK_SIZES) if quick else (MIDDLE, SIZES)
    measured: dict[Point, dict[str, float]] = {}
    curves = []
    for axis, values in sizes.items():
        points = [replace(middle, **{axis: value}) for value in values]
        for point in points:
            if point not in measured:
                measured[point] = _measure(session, point, 1 if quick else REPEATS)
        curves += _curves(axis, values, [measured[point] for point in points])
    draw(curves, session.settings.plot)
    return _section(curves, middle, session.settings.plot)


def _measure(session: Session, point: Point, repeats: int) -> dict[str, float]:
    """Seconds and peak anonymous memory of one point: the faster of the repeats."""
    model = session.checkpoint(SHAPE, point.blocks, point.hidden_size)
    options = ("--ratio", str(RATIO), *ON_CPU)
    found = []
    for _ in range(repeats):
        with session.outputs() as folder:
            out = folder / "pruned"
            pruned = prune(session, model, out, *options, samples=point.tokens // SEQLEN)
        seconds = sum(pruned.stages[stage] for stage in WORKING_STAGES)
        memory = pruned.result["peak_anonymous_bytes"]
        found.append({"seconds": seconds, "peak_anonymous_bytes": memory})
    return min(found, key=lambda one: one["seconds"])


def _curves(axis: str, sizes: tuple[int, ...], found: list[dict[str, float]]) -> list[Curve]:
    """The two curves of an axis: seconds and memory, each with its fit."""
    curves = []
    for figure, scale in (("seconds", 1.0), ("peak_anonymous_bytes", 1e-9)):
        values = [one[figure] * scale for one in found]
        fitted = fit(sizes, values, POWERS[axis])
        curves.append(Curve(axis, figure, sizes, tuple(values), fitted, exponent(sizes, values)))
    return curves


def _section(curves: list[Curve], middle: Point, plot: Path) -> Section:
    table = Table(
        f"growth: shape {SHAPE} around {middle.blocks} blocks, hidden size {middle.hidden_size}, "
        f"{middle.tokens} tokens",
        ("", "s", "peak anonymous"),
        tuple(row for axis in AXES for row in _point_rows(axis, curves)),
    )
    fits = Table(
        "fits",
        ("", "exponent (log-log)", "theory", "a + b x^theory", "R²"),
        tuple(_fit_row(curve) for curve in curves),
    )
    values = {"middle": vars(middle), "curves": [_curve_values(curve) for curve in curves]}
    return Section({**values, "plot": str(plot)}, (table, fits), (THEORY, f"picture: {plot}"))


def _point_rows(axis: str, curves: list[Curve]) -> list[tuple[str, str, str]]:
    seconds, memory = (curve for curve in curves if curve.axis == axis)
    points = zip(seconds.sizes, seconds.values, memory.values, strict=True)
    return [
        (f"{AXES[axis]} {size:,}", seconds_text(taken), gigabytes_text(held * 1e9))
        for size, taken, held in points
    ]


def _fit_row(curve: Curve) -> tuple[str, ...]:
    unit = "s" if curve.figure == "seconds" else "GB"
    power = POWERS[curve.axis]
    sign = "-" if curve.fit.slope < 0 else "+"
    theory = str(power) if curve.figure == "seconds" else NOTHING
    return (
        f"{unit} against {AXES[curve.axis]}",
        f"{curve.exponent:.2f}",
        theory,
        f"{curve.fit.constant:.3f} {sign} {abs(curve.fit.slope):.3g} x{'²' if power == 2 else ''}",
        percent_text(curve.fit.explained),
    )


def _curve_values(curve: Curve) -> dict[str, Any]:
    fitted: Fit = curve.fit
    return {
        "axis": curve.axis,
        "figure": "seconds" if curve.figure == "seconds" else "peak_anonymous_gigabytes",
        "sizes": curve.sizes,
        "values": curve.values,
        "exponent": curve.exponent,
        "fit": vars(fitted),
    }
