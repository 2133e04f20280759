"""A comparison for other programs: JSON with its schema's version, and CSV with a line a row."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bipline.comparison.report import render_comparison
from bipline.comparison.spread import Repeated, repeated
from bipline.storage.directory import environment_failure, write_text
from bipline.values.comparison import Comparison, Row
from bipline.values.figures import figures_of, row_figures

# The stages whose seconds a row has.
ROW_STAGES = ("score", "allocate", "compensate", "prune", "evaluate")
DENSE = "dense"
TRIED = (
    "model", "calibration", "method", "alias", "criterion", "allocation", "layout",
    "compensation", "ratio", "ratio_of", "seed", "refusal",
)  # fmt: skip
OF_MODEL = (
    "parameters", "parameters_ratio", "reached_blocks", "reached_total", "file_bytes",
    "corrected", "block_error_without", "block_error",
)  # fmt: skip
OF_TEXT = ("perplexity", "nll", "perplexity_increase", "nll_increase")
CAME_OF_IT = (
    "seconds", "peak_bytes", "peak_device_bytes", "sums_from", "plan_digest", "tensor_digest",
    "directory",
)  # fmt: skip


def write_results(comparison: Comparison, out: Path) -> None:
    """Write ``comparison.json``, ``.csv`` and ``.html`` into a folder.

    Raises EnvironmentFailure when the disk is full.
    """
    write_copies(comparison, {suffix: out / f"comparison.{suffix}" for suffix in RESULTS})


def write_copies(comparison: Comparison, places: Mapping[str, Path | None]) -> None:
    """Write what is asked for, by suffix, where it was asked for."""
    try:
        for suffix, place in places.items():
            if place is not None:
                write_text(place, RESULTS[suffix](comparison))
    except OSError as error:
        raise environment_failure(error) or error from None


def comparison_value(comparison: Comparison) -> dict[str, Any]:
    """The comparison as JSON, with every combination's spread over its seeds.

    ``spread`` has an entry a combination that was measured; ``protocol.digest`` of the models'
    records is that of every row.
    """
    value = comparison.model_dump(mode="json")
    for name, model in comparison.models.items():
        value["models"][name]["record"] = model.record.to_json_value()
    return {**value, "spread": [_spread(each) for each in repeated(comparison.rows)]}


def comparison_json(comparison: Comparison) -> str:
    """The text of :func:`comparison_value`: sorted, the same for the same rows."""
    return json.dumps(comparison_value(comparison), indent=1, sort_keys=True) + "\n"


def comparison_csv(comparison: Comparison) -> str:
    """A line a row, after a line a dense model; what a row has not is empty.

    Figures have their names of :mod:`bipline.values.figures`.
    """
    out = io.StringIO()
    writer = csv.DictWriter(out, _columns(comparison), extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(_dense(comparison, name) for name in comparison.models)
    writer.writerows(map(_line, comparison.rows))
    return out.getvalue()


def _spread(each: Repeated) -> dict[str, Any]:
    texts = next((row.measured.perplexity for row in each.rows if row.measured), {})

    def over(name: str) -> Any:
        found = each.over(name)
        return found and found.model_dump(mode="json")

    return {
        "combination": each.combination.model_dump(mode="json", exclude={"seed"}),
        "seeds": [row.combination.seed for row in each.rows if row.measured],
        "refusals": each.refusals,
        "parameters": over("parameters"),
        "seconds": over("seconds"),
        "perplexity": {text: over(f"perplexity.{text}") for text in texts},
        "nll_change": {text: over(f"nll_increase.{text}") for text in texts},
    }


def _columns(comparison: Comparison) -> list[str]:
    of_texts = (f"{kind}.{text}" for text in comparison.texts for kind in OF_TEXT)
    return [
        *TRIED, *OF_MODEL, *of_texts, *(f"seconds.{stage}" for stage in ROW_STAGES), *CAME_OF_IT,
    ]  # fmt: skip


def _dense(comparison: Comparison, name: str) -> dict[str, Any]:
    record = comparison.models[name].record
    about = {"model": name, "method": DENSE, "criterion": DENSE, "ratio": 0}
    return {
        **about, "tensor_digest": record.tensor_digest,
        **{name: figure.value for name, figure in figures_of(record, record).items()},
    }  # fmt: skip


def _line(row: Row) -> dict[str, Any]:
    tried, measured = row.combination, row.measured
    choices = ("criterion", "allocation", "compensation")
    line = {
        **tried.model_dump(mode="json"), **{name: getattr(tried, name).label for name in choices},
        "method": tried.method, "refusal": row.refusal, "directory": row.directory,
    }  # fmt: skip
    if measured is None:
        return line
    return {
        **line, **{name: figure.value for name, figure in row_figures(row).items()},
        "corrected": measured.compensated and measured.compensated.told,
        "plan_digest": measured.plan_digest, "tensor_digest": measured.tensor_digest,
        "sums_from": row.cost.sums_from,
    }  # fmt: skip


RESULTS: dict[str, Callable[[Comparison], str]] = {
    "json": comparison_json,
    "csv": comparison_csv,
    "html": render_comparison,
}
