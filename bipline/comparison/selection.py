"""Selection: the best combination under a constraint, by figures that have names.

``parameters``, ``parameters_ratio`` (what is left, as a share), ``file_bytes``, ``seconds`` and
``peak_bytes``; of every evaluation text NAME ``perplexity.NAME``, ``perplexity_increase.NAME``
(over dense, as a share: 0.1 is a tenth more) and ``nll_increase.NAME`` (nats per token).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from pydantic import BaseModel, ConfigDict, Field

from bipline.comparison.spread import repeated
from bipline.values.comparison import Best, Comparison, Measured, Row

Figure = Callable[[Row, Measured], float]
OF_ROW: dict[str, Figure] = {
    "parameters": lambda _, measured: float(measured.parameters.after),
    "parameters_ratio": lambda _, measured: measured.parameters.ratio,
    "file_bytes": lambda _, measured: float(measured.file_bytes),
    "seconds": lambda row, _: row.cost.total_seconds,
    "peak_bytes": lambda row, _: float(row.cost.peak_anonymous_bytes),
}
OF_TEXT: dict[str, Callable[[Measured, str], float]] = {
    "perplexity": lambda measured, text: measured.perplexity[text].value,
    "perplexity_increase": lambda measured, text: increase(measured, text),
    "nll_increase": lambda measured, text: measured.change[text].nll,
}


class Selection(BaseModel):
    """What is minimised, and what no seed of a combination may exceed."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    minimise: str = Field(
        description="figure whose mean over seeds is to be least: perplexity.TEXT, parameters, ..."
    )
    at_most: dict[str, float] = Field(
        default={},
        description="limits by figure, such as parameters_ratio or perplexity_increase.TEXT",
    )

    def check(self, texts: Iterable[str]) -> None:
        """Raise ValueError for a figure that rows do not have."""
        known = [*OF_ROW, *(f"{kind}.{text}" for text in texts for kind in OF_TEXT)]
        for name in (self.minimise, *self.at_most):
            if name not in known:
                raise ValueError(f"select: {name!r} is no figure; known: {', '.join(known)}")


def increase(measured: Measured, text: str) -> float:
    """The perplexity over that of the dense model, less one."""
    after, change = measured.perplexity[text].value, measured.change[text].perplexity
    return change / (after - change)


def figure(name: str) -> Figure:
    """The figure of a name that :meth:`Selection.check` let through."""
    if name in OF_ROW:
        return OF_ROW[name]
    kind, _, text = name.partition(".")
    read = OF_TEXT[kind]
    return lambda _, measured: read(measured, text)


def best(comparison: Comparison, selection: Selection) -> Best | None:
    """The combination with the least mean, of those of which every seed meets every limit.

    None where there is none. Of equal ones the first of the grid is taken.
    """
    found: Best | None = None
    for each in repeated(comparison.rows):
        minimised = each.over(figure(selection.minimise))
        if minimised is None or len(each.measured) < len(each.rows):
            continue
        spreads = {name: each.over(figure(name)) for name in selection.at_most}
        met = all(
            spread is not None and spread.most <= selection.at_most[name]
            for name, spread in spreads.items()
        )
        if met and (found is None or minimised.mean < found.value):
            found = Best(rows=each.rows, minimised=selection.minimise, value=minimised.mean)
    return found
