"""A comparison for other programs: JSON with its schema's version, and CSV with a line a row."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bipline.comparison.report import TITLE, render_comparison
from bipline.comparison.spread import Repeated, repeated
from bipline.delivery.page import is_titled
from bipline.stages.stage import Context, Stage
from bipline.storage.digests import digest_json
from bipline.storage.directory import DirectoryWriter, environment_failure, write_text
from bipline.storage.store import Handle
from bipline.storage.strict_json import written_text
from bipline.values.comparison import Comparison, Row
from bipline.values.differences import kind_name
from bipline.values.figures import (
    SPEED_FIGURES,
    TASK_FIGURES,
    figures_of,
    row_figures,
    values,
)

STAGE = Stage("collect", "comparison", ("bipline.comparison.report",))
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
OF_TASKS_AND_SPEED = {*TASK_FIGURES, *SPEED_FIGURES}
WITH_ERRORS = ("perplexity", "nll", "nll_increase")
CAME_OF_IT = (
    "seconds", "peak_bytes", "peak_device_bytes", "sums_from", "plan_digest", "tensor_digest",
    "directory",
)  # fmt: skip


def write_results(comparison: Comparison, places: Mapping[str, Path | None]) -> None:
    """Write what is asked for, by suffix, where it was asked for.

    Raises EnvironmentFailure when the disk is full.
    """
    try:
        for suffix, place in places.items():
            if place is not None:
                write_text(place, RESULTS[suffix](comparison))
    except OSError as error:
        raise environment_failure(error) or error from None


def store_results(context: Context, comparison: Comparison) -> Handle:
    """The same files as a stage's output, in the Store."""

    def produce(writer: DirectoryWriter, work: Path) -> None:
        write_results(comparison, results_in(writer.path))

    # With seconds and memory, which the files tell too.
    inputs = {"comparison": digest_json(comparison.model_dump(mode="json"))}
    return STAGE.run(context, STAGE.key(inputs, {}), produce)


def results_in(folder: Path) -> dict[str, Path]:
    """Where the files of a comparison lie in a folder, by suffix."""
    return {suffix: folder / f"comparison.{suffix}" for suffix in RESULTS}


def comparison_json(comparison: Comparison) -> str:
    """The comparison, with every combination's spread over its seeds: the same for the same rows.

    ``spread`` has an entry a combination that was measured; ``protocol.digest`` of the models'
    records is that of every row.
    """
    value = comparison.model_dump(mode="json")
    for name, model in comparison.models.items():
        value["models"][name]["record"] = model.record.to_json_value()
    value["spread"] = [_spread(each) for each in repeated(comparison.rows)]
    return json.dumps(value, indent=1, sort_keys=True) + "\n"


def comparison_csv(comparison: Comparison) -> str:
    """A line a row, after a line a dense model; what a row has not is empty.

    Figures have their names of :mod:`bipline.values.figures`.
    """
    of_texts = [f"{kind}.{text}" for text in comparison.texts for kind in OF_TEXT]
    of_texts += [f"{kind}.{text}.stderr" for text in comparison.texts for kind in WITH_ERRORS]
    seconds = (f"seconds.{stage}" for stage in ROW_STAGES)
    lines = [
        *(_dense(comparison, name) for name in comparison.models),
        *map(_line, comparison.rows),
    ]
    told = dict.fromkeys(name for line in lines for name in line)
    more = [name for name in told if kind_name(name) in OF_TASKS_AND_SPEED]
    columns, out = [*TRIED, *OF_MODEL, *of_texts, *more, *seconds, *CAME_OF_IT], io.StringIO()
    writer = csv.DictWriter(out, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _cell(value) for name, value in line.items()} for line in lines)
    return out.getvalue()


def _cell(value: Any) -> Any:
    """A text that a spreadsheet would take for a formula is quoted, as spreadsheets do it."""
    formula = isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r"))
    return f"'{value}" if formula else value


def _spread(each: Repeated) -> dict[str, Any]:
    texts = next((row.measured.perplexity for row in each.rows if row.measured), {})
    tasks = next((row.measured.tasks for row in each.rows if row.measured), None)

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
        **({"accuracy": {task: over(f"acc.{task}") for task in tasks}} if tasks else {}),
    }


def _dense(comparison: Comparison, name: str) -> dict[str, Any]:
    record = comparison.models[name].record
    about = {"model": name, "method": DENSE, "criterion": DENSE, "ratio": 0}
    return {**about, "tensor_digest": record.tensor_digest, **values(figures_of(record, record))}


def _line(row: Row) -> dict[str, Any]:
    about = {"method": row.combination.method, "refusal": row.refusal, "directory": row.directory}
    line = {**row.combination.written(), **about, **values(row_figures(row))}
    if measured := row.measured:
        line |= {
            "corrected": measured.compensated and measured.compensated.told,
            "plan_digest": measured.plan_digest, "tensor_digest": measured.tensor_digest,
            "sums_from": row.cost.sums_from,
        }  # fmt: skip
    return line


RESULTS: dict[str, Callable[[Comparison], str]] = {
    "json": comparison_json,
    "csv": comparison_csv,
    "html": render_comparison,
}


def is_comparison(path: Path) -> bool:
    """Whether a file is one that an earlier comparison wrote: its JSON, its CSV or its page."""
    text = written_text(path)
    keys = ('"models"', '"rows"', '"spread"', '"texts"')
    return (
        text.startswith(",".join(TRIED))
        or (text.startswith("{") and all(key in text for key in keys))
        or is_titled(text, TITLE)
    )
