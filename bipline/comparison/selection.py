"""Selection: the best combination under a constraint, by the names of figures.

See :mod:`bipline.values.figures`: ``parameters``, ``parameters_ratio`` (what is left, as a share),
``file_bytes``, ``seconds`` and ``peak_bytes``; of every evaluation text NAME ``perplexity.NAME``,
``perplexity_increase.NAME`` (over dense, as a share: 0.1 is a tenth more) and
``nll_increase.NAME`` (nats per token).
"""

from __future__ import annotations

from bipline.comparison.spread import Repeated, repeated
from bipline.settings.sweep import Selection
from bipline.values.comparison import Best, Comparison


def best(comparison: Comparison, selection: Selection) -> Best | None:
    """The combination with the least mean, of those of which every seed meets every limit.

    None where there is none. Of equal ones the first of the grid is taken.
    """
    found: Best | None = None
    for each in repeated(comparison.rows):
        minimised = each.over(selection.minimise)
        if minimised is None or not _meets(each, selection.at_most):
            continue
        if found is None or minimised.mean < found.value:
            found = Best(rows=each.rows, minimised=selection.minimise, value=minimised.mean)
    return found


def _meets(each: Repeated, at_most: dict[str, float]) -> bool:
    """Whether every seed was measured and is within every limit; NaN is not."""
    return len(each.figures) == len(each.rows) and all(
        figures[name].value <= limit for figures in each.figures for name, limit in at_most.items()
    )
