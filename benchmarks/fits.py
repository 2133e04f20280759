"""Least squares for growth curves, and their picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

LABELS = {
    "blocks": "blocks",
    "hidden_size": "hidden size",
    "tokens": "tokens",
    "seconds": "score + prune, s",
    "peak_anonymous_bytes": "peak anonymous, GB",
}


@dataclass(frozen=True)
class Fit:
    """``constant + slope * size ** power``, and the share of the variance that it explains."""

    power: int
    constant: float
    slope: float
    explained: float

    def at(self, sizes: np.ndarray) -> np.ndarray:
        """The fitted values at these sizes."""
        return self.constant + self.slope * sizes**self.power


@dataclass(frozen=True)
class Curve:
    """One figure against one size, with its fit and its exponent on logarithmic axes."""

    axis: str
    figure: str
    sizes: tuple[int, ...]
    values: tuple[float, ...]
    fit: Fit
    exponent: float


def fit(sizes: Sequence[int], values: Sequence[float], power: int) -> Fit:
    """The least-squares fit of ``constant + slope * size ** power``."""
    powered, measured = np.asarray(sizes, float) ** power, np.asarray(values)
    slope, constant = np.polyfit(powered, measured, 1)
    left = measured - (constant + slope * powered)
    variance = float(((measured - measured.mean()) ** 2).sum())
    explained = 1 - float((left**2).sum()) / variance if variance else 1.0
    return Fit(power, float(constant), float(slope), explained)


def exponent(sizes: Sequence[int], values: Sequence[float]) -> float:
    """The slope of the straight line through the points on logarithmic axes."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def draw(curves: Sequence[Curve], path: Path) -> None:
    """All curves as PNG: a column for each size that changes, a row for each figure."""
    axes = list(dict.fromkeys(curve.axis for curve in curves))
    figures = list(dict.fromkeys(curve.figure for curve in curves))
    picture = Figure(figsize=(3.6 * len(axes), 3.0 * len(figures)), layout="constrained")
    FigureCanvasAgg(picture)
    places = picture.subplots(len(figures), len(axes), squeeze=False)
    for curve in curves:
        _draw_curve(places[figures.index(curve.figure)][axes.index(curve.axis)], curve)
    # Without the library's version the same numbers give the same bytes.
    picture.savefig(path, dpi=110, metadata={"Software": None})


def _draw_curve(place: Axes, curve: Curve) -> None:
    dense = np.linspace(min(curve.sizes), max(curve.sizes), 200)
    square = "²" if curve.fit.power == 2 else ""
    place.plot(dense, curve.fit.at(dense), color="tab:gray", label=f"a + b x{square}")
    label = f"measured, exponent {curve.exponent:.2f}"
    place.plot(curve.sizes, curve.values, "o", color="tab:blue", label=label)
    place.set(xlabel=LABELS[curve.axis], ylabel=LABELS[curve.figure])
    place.set_ylim(0, max(curve.values) * 1.25)
    place.set_xticks(curve.sizes, [f"{size:,}" for size in curve.sizes], rotation=45)
    place.legend(loc="upper left" if curve.figure == "seconds" else "lower right", fontsize=8)
