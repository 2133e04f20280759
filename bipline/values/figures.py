"""Figures: every number that bipline tells, by one name."""

from __future__ import annotations

# Of a row of a comparison, and of each of its texts; see comparison.selection.
ROW_FIGURES = ("parameters", "parameters_ratio", "file_bytes", "seconds", "peak_bytes")
TEXT_FIGURES = ("perplexity", "perplexity_increase", "nll_increase")
