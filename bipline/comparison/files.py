"""A comparison for other programs: JSON with its schema's version, and CSV with a line a row."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

from bipline.comparison.spread import Repeated, repeated
from bipline.values.comparison import Comparison, Measured, Row

STAGES = ("score", "allocate", "compensate", "prune", "evaluate")
DENSE = "dense"


def comparison_value(comparison: Comparison) -> dict[str, Any]:
    """The comparison as JSON, with every combination's spread over its seeds.

    ``spread`` has an entry a combination that was measured; ``protocol.digest`` of the models'
    records is that of every row.
    """
    value = comparison.model_dump(mode="json")
    for name, held in comparison.models.items():
        value["models"][name]["record"] = held.record.to_json_value()
    return {**value, "spread": [_spread(each) for each in repeated(comparison.rows)]}


def comparison_json(comparison: Comparison) -> str:
    """The text of :func:`comparison_value`: sorted, the same for the same rows."""
    return json.dumps(comparison_value(comparison), indent=1, sort_keys=True) + "\n"


def comparison_csv(comparison: Comparison) -> str:
    """A line a row, after a line a dense model; what a row has not is empty."""
    out = io.StringIO()
    lines = [
        *(_dense(comparison, name) for name in comparison.models),
        *map(_line, comparison.rows),
    ]
    writer = csv.DictWriter(out, _columns(comparison), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return out.getvalue()


def _spread(each: Repeated) -> dict[str, Any]:
    combination = each.combination.model_dump(mode="json", exclude={"seed"})
    texts = each.measured[0][1].perplexity if each.measured else {}

    def over(read: Any) -> Any:
        found = each.over(read)
        return found and found.model_dump(mode="json")

    return {
        "combination": combination,
        "seeds": [row.combination.seed for row, _ in each.measured],
        "refusals": each.refusals,
        "parameters": over(lambda _, measured: measured.parameters.after),
        "seconds": over(lambda row, _: row.cost.total_seconds),
        "perplexity": {
            text: over(lambda _, measured, text=text: measured.perplexity[text].value)
            for text in texts
        },
        "nll_change": {
            text: over(lambda _, measured, text=text: measured.change[text].nll) for text in texts
        },
    }


def _columns(comparison: Comparison) -> list[str]:
    figures = ("perplexity", "nll", "perplexity_change", "nll_change")
    return [
        "model", "calibration", "method", "alias", "criterion", "allocation", "layout",
        "compensation", "ratio", "ratio_of", "seed", "refusal", "parameters_before",
        "parameters_after", "reached_blocks", "reached_total", "file_bytes", "corrected",
        "error_without", "error",
        *(f"{figure}.{text}" for text in comparison.texts for figure in figures),
        *(f"seconds.{stage}" for stage in STAGES), "seconds", "peak_anonymous_bytes",
        "peak_device_bytes", "sums_from", "plan_digest", "tensor_digest", "directory",
    ]  # fmt: skip


def _dense(comparison: Comparison, name: str) -> dict[str, Any]:
    record = comparison.models[name].record
    line = {
        "model": name, "method": DENSE, "criterion": DENSE, "ratio": 0,
        "parameters_before": record.parameters, "parameters_after": record.parameters,
        "file_bytes": record.file_bytes, "tensor_digest": record.tensor_digest,
    }  # fmt: skip
    for text, found in record.perplexity.items():
        line |= {f"perplexity.{text}": found.value, f"nll.{text}": found.nll}
    return line


def _line(row: Row) -> dict[str, Any]:
    tried = row.combination
    line: dict[str, Any] = {
        "model": tried.model, "calibration": tried.calibration, "method": tried.method,
        "alias": tried.alias,
        "criterion": tried.criterion.label, "allocation": tried.allocation.label,
        "layout": tried.layout, "compensation": tried.compensation.label, "ratio": tried.ratio,
        "ratio_of": tried.ratio_of, "seed": tried.seed, "refusal": row.refusal,
        "directory": row.directory,
    }  # fmt: skip
    return line if row.measured is None else {**line, **_figures(row.measured), **_costs(row)}


def _figures(measured: Measured) -> dict[str, Any]:
    line: dict[str, Any] = {
        "parameters_before": measured.parameters.before,
        "parameters_after": measured.parameters.after,
        "reached_blocks": measured.ratio.reached_blocks,
        "reached_total": measured.ratio.reached_total,
        "file_bytes": measured.file_bytes,
        "plan_digest": measured.plan_digest,
        "tensor_digest": measured.tensor_digest,
    }
    if did := measured.compensated:
        line |= {
            "corrected": did.told,
            "error_without": sum(did.error_without),
            "error": sum(did.error),
        }
    for text, found in measured.perplexity.items():
        change = measured.change[text]
        line |= {
            f"perplexity.{text}": found.value,
            f"nll.{text}": found.nll,
            f"perplexity_change.{text}": change.perplexity,
            f"nll_change.{text}": change.nll,
        }
    return line


def _costs(row: Row) -> dict[str, Any]:
    cost = row.cost
    return {
        **{f"seconds.{stage}": cost.seconds.get(stage) for stage in STAGES},
        "seconds": cost.total_seconds,
        "peak_anonymous_bytes": cost.peak_anonymous_bytes,
        "peak_device_bytes": cost.peak_device_bytes,
        "sums_from": cost.sums_from,
    }
