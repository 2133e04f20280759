"""Selection: the best combination under limits, by the names of figures.

See :mod:`bipline.values.figures`: ``parameters``, ``parameters_ratio`` (what is left, as a share),
``file_bytes``, ``seconds`` and ``peak_bytes``; of every evaluation text NAME ``perplexity.NAME``,
``perplexity_increase.NAME`` (over dense, as a share: 0.1 is a tenth more) and
``nll_increase.NAME`` (nats per token); of every task ``acc.NAME`` and ``acc_change.NAME`` (shares
of rows), and of acc_norm the same; with speed the rates and ``prefill_factor``, ``decode_factor``.
"""

from __future__ import annotations

from bipline.comparison.spread import Repeated, repeated
from bipline.settings.sweep import Selection
from bipline.values.comparison import Best, Comparison


def best(comparison: Comparison, selection: Selection) -> Best | None:
    """The combination with the best mean, of those of which every seed meets every limit.

    None where there is none: a figure that is not told, such as a factor of speeds whose ranges
    overlap, neither wins nor meets a limit. Of equal ones the first of the grid is taken.
    """
    found: Best | None = None
    sign = 1 if selection.minimise else -1
    for each in repeated(comparison.rows):
        decides = each.over(selection.figure)
        if decides is None or not _meets(each, selection):
            continue
        if found is None or sign * decides.mean < sign * found.value:
            ways = {"minimised": selection.minimise, "maximised": selection.maximise}
            found = Best(rows=each.rows, value=decides.mean, **ways)
    return found


def _meets(each: Repeated, selection: Selection) -> bool:
    """Whether every seed was measured and is within every limit; NaN is not."""
    limits = [
        *((name, 1, limit) for name, limit in selection.at_most.items()),
        *((name, -1, limit) for name, limit in selection.at_least.items()),
    ]
    return len(each.figures) == len(each.rows) and all(
        name in figures and sign * figures[name].value <= sign * limit
        for figures in each.figures
        for name, sign, limit in limits
    )
