"""The report of a comparison: one self-contained HTML page to choose a method by.

Like :mod:`bipline.delivery.report`: parts are functions that give fragments, nothing is loaded,
names from outside are escaped, and the same rows give the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

from markupsafe import Markup

from bipline import __version__
from bipline.comparison.pictures import (
    Curve,
    Point,
    bars_picture,
    curves_picture,
    swatch,
)
from bipline.comparison.spread import Repeated, Spread, ranked
from bipline.compression.descriptions import criterion_method
from bipline.delivery.compensation_text import IDEAS
from bipline.delivery.contents import byte_size, percent, perplexity_text, portable
from bipline.delivery.report import Part
from bipline.values.comparison import Comparison

TEMPLATE = "comparison.html.j2"


def render_comparison(comparison: Comparison) -> str:
    """The whole page."""
    parts = [Part(identifier, title, render(comparison)) for identifier, title, render in PARTS]
    measured = sum(row.measured is not None for row in comparison.rows)
    refused = len(comparison.rows) - measured
    title = f"Comparison of methods on {', '.join(comparison.models)}"
    subtitle = (
        f"{measured:,} pruned models were measured under one protocol"
        f"{f', {refused:,} combinations were refused' if refused else ''}. Perplexity on "
        f"{', '.join(comparison.texts)}."
    )
    return str(_macros().page(title, subtitle, parts))


def table_part(comparison: Comparison) -> Markup:
    """A line a combination, the dense model first."""
    lead = (
        "By ratio, and there by perplexity on the first text. Where several seeds were run, the "
        "mean, the standard deviation, and the least and the most stand beside each other."
    )
    tables = [_model_table(comparison, model) for model in comparison.models]
    return _part("table", "All combinations", lead, Markup("\n").join(tables))


def curves_part(comparison: Comparison) -> Markup:
    """Perplexity over dense against parameters, a curve a method."""
    figures = []
    for model in comparison.models:
        for text in comparison.texts:
            curves = _curves(comparison, model, text)
            if curves:
                label = f"perplexity increase on {text} against parameters, {model}"
                legend = [{"swatch": swatch(c.number), "name": c.name} for c in curves]
                caption = f"Perplexity on {text} above the dense model's, by parameters left."
                picture = curves_picture(curves, label)
                figures.append(_macros().figure(f"{model}.", caption, picture, legend))
    lead = "Lower is better; a line through a mark spans the seeds."
    body = Markup("\n").join(figures) if figures else Markup("<p>Nothing was measured.</p>")
    return _part("curves", "Quality against size", lead, body)


def cost_part(comparison: Comparison) -> Markup:
    """Seconds and memory of each method, side by side."""
    pairs = []
    for model in comparison.models:
        costs = _costs(comparison, model)
        if costs:
            seconds = bars_picture(
                [(name, spent) for name, spent, _ in costs], f"seconds by method, {model}", "s"
            )
            memory = bars_picture(
                [(name, peak / 1e6) for name, _, peak in costs], f"memory by method, {model}", "MB"
            )
            captions = (
                "Seconds to score, allocate, compensate and prune, mean over rows.",
                "Highest private memory of the process, evaluation included.",
            )
            figures = [
                _macros().figure(f"{model}.", caption, picture, [])
                for caption, picture in zip(captions, (seconds, memory), strict=True)
            ]
            pairs.append(Markup('<div class="pair">{}</div>').format(Markup("\n").join(figures)))
    shared = sorted(
        {
            f"{row.combination.criterion.label} from {row.cost.sums_from}"
            for row in comparison.rows
            if row.cost.sums_from
        }
    )
    told = f" Scored from another's pass, which is counted there: {', '.join(shared)}."
    lead = f"As run here; other machines differ.{told if shared else ''}"
    return _part("cost", "What it costs", lead, Markup("\n").join(pairs))


def methods_part(comparison: Comparison) -> Markup:
    """What names stand for, and each criterion and compensation in words of its own."""
    tried = [row.combination for row in comparison.rows]
    named = dict.fromkeys((each.alias, each.unnamed.method) for each in tried if each.alias)
    rows = [[alias, f"stands for {method}"] for alias, method in named]
    rows += [
        [name, criterion_method(name).idea]
        for name in dict.fromkeys(each.criterion.name for each in tried)
    ]
    rows += [
        [name, IDEAS[name]]
        for name in dict.fromkeys(each.compensation.name for each in tried if each.compensates)
    ]
    return _part("methods", "Criteria and compensations", "", _table(rows))


def refused_part(comparison: Comparison) -> Markup:
    """Combinations that cannot be, with the reason."""
    rows = [
        [row.combination.label, row.combination.model, row.refusal]
        for row in comparison.rows
        if row.refusal
    ]
    if not rows:
        return _part("refused", "Refused", "Every combination could be measured.", Markup(""))
    return _part("refused", "Refused", "", _table(rows, ["", "Model", "Reason"]))


def protocol_part(comparison: Comparison) -> Markup:
    """What everything was measured on and with, by digest and version."""
    body = Markup("")
    for name, text in comparison.calibrations.items():
        told = {**text.model_dump(mode="json"), "source": portable(text.source)}
        body += _details(f"Calibration text {name}", _table(_flat(told)), opened=True)
    for name, held in comparison.models.items():
        record = held.record.to_json_value()
        about = {
            "source": portable(held.source), "revision": held.revision, "licence": held.licence,
            "tensors": held.record.tensor_digest, "parameters": f"{held.record.parameters:,}",
        }  # fmt: skip
        body += _details(f"Model {name}", _table(_flat(about)))
        body += _details(f"Protocol, {name}", _table(_flat(record["protocol"])))
        versions = {"bipline": __version__, **record["environment"]}
        body += _details(f"Versions and machine, {name}", _table(_flat(versions)))
    return _part("protocol", "Protocol and sources", "", body)


PARTS: tuple[tuple[str, str, Callable[[Comparison], Markup]], ...] = (
    ("table", "All combinations", table_part),
    ("curves", "Quality against size", curves_part),
    ("cost", "What it costs", cost_part),
    ("methods", "Criteria and compensations", methods_part),
    ("refused", "Refused", refused_part),
    ("protocol", "Protocol and sources", protocol_part),
)


def _model_table(comparison: Comparison, model: str) -> Markup:
    dense, texts = comparison.models[model].record, comparison.texts
    head = [
        model, "Compensation", "Ratio", "Parameters", "Left", "On disk",
        *(f"Perplexity, {t}" for t in texts), *(f"NLL change, {t}" for t in texts), "Seconds",
        "Memory",
    ]  # fmt: skip
    figures = [perplexity_text(dense.perplexity[text].value) for text in texts]
    first = ["dense", "", "", f"{dense.parameters:,}", percent(1), byte_size(dense.file_bytes)]
    rows = [[*first, *figures, *("" for _ in texts), "", ""]]
    rows += [_cells(comparison, each) for each in ranked(comparison, model) if each.measured]
    return _table(rows, head, numeric=True)


def _cells(comparison: Comparison, each: Repeated) -> list[str]:
    texts, (row, measured) = comparison.texts, each.measured[0]
    return [
        _name(comparison, each, each.combination.selection),
        each.compensation,
        f"{row.combination.ratio:g}",
        _shown(each.over(lambda _, m: m.parameters.after), "{:,.0f}".format),
        _shown(each.over(lambda _, m: m.parameters.ratio), percent),
        byte_size(measured.file_bytes),
        *(_shown(_perplexity(each, text), perplexity_text) for text in texts),
        *(_shown(_change(each, text), "{:+.3f}".format) for text in texts),
        _shown(each.over(lambda r, _: r.cost.total_seconds), "{:.1f}".format),
        byte_size(max(r.cost.peak_anonymous_bytes for r, _ in each.measured)),
    ]


def _perplexity(each: Repeated, text: str) -> Spread | None:
    return each.over(lambda _, measured: measured.perplexity[text].value)


def _change(each: Repeated, text: str) -> Spread | None:
    return each.over(lambda _, measured: measured.change[text].nll)


def _shown(spread: Spread | None, show: Callable[[float], str]) -> str:
    """A mean; where seeds differ, with deviation and range."""
    if spread is None:
        return ""
    if spread.deviation is None or spread.least == spread.most:
        return show(spread.mean)
    apart = f"{show(spread.least)} to {show(spread.most)}"
    return f"{show(spread.mean)} ± {show(spread.deviation).lstrip('+')} ({apart})"


def _curves(comparison: Comparison, model: str, text: str) -> list[Curve]:
    """Curves in the order of the grid, so that a method looks the same in every picture."""
    found: dict[str, list[Point]] = {}
    for each in ranked(comparison, model):
        spread = each.over(lambda _, measured: measured.change[text].perplexity)
        left = each.over(lambda _, measured: measured.parameters.after)
        if spread is None or left is None:
            continue
        name = _name(comparison, each, each.combination.method)
        title = f"{name}, ratio {each.combination.ratio:g}: {spread.mean:+.4g}"
        found.setdefault(name, []).append(Point(left.mean, spread, title))
    numbers = {name: number for number, name in enumerate(_names(comparison))}
    return [
        Curve(name, numbers[name], tuple(sorted(points, key=lambda point: point.parameters)))
        for name, points in sorted(found.items(), key=lambda item: numbers[item[0]])
    ]


def _costs(comparison: Comparison, model: str) -> list[tuple[str, float, float]]:
    """Seconds (mean) and memory in bytes (highest) of every measured method of a model."""
    found: dict[str, list[tuple[float, int]]] = {}
    for each in ranked(comparison, model):
        for row, _ in each.measured:
            spent = row.cost.total_seconds - row.cost.seconds.get("evaluate", 0.0)
            name = _name(comparison, each, each.combination.method)
            held = found.setdefault(name, [])
            held.append((spent, row.cost.peak_anonymous_bytes))
    return [
        (name, sum(s for s, _ in held) / len(held), max(peak for _, peak in held))
        for name, held in ((name, found[name]) for name in _names(comparison) if name in found)
    ]


def _names(comparison: Comparison) -> list[str]:
    """The methods, each once, in the order of the grid."""
    rows = (Repeated((row,)) for row in comparison.rows)
    return list(dict.fromkeys(_name(comparison, each, each.combination.method) for each in rows))


def _name(comparison: Comparison, each: Repeated, name: str) -> str:
    several = len(comparison.calibrations) > 1
    return f"{name}, on {each.combination.calibration}" if several else name


@cache
def _macros() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    return environment.get_template(TEMPLATE).module


def _part(identifier: str, title: str, lead: str, body: Markup) -> Markup:
    fragment: Markup = _macros().part(identifier, title, lead, body)
    return fragment


def _table(
    rows: Iterable[list[Any]], head: list[str] | None = None, numeric: bool = False
) -> Markup:
    fragment: Markup = _macros().table(head or [], list(rows), numeric)
    return fragment


def _details(title: str, body: Markup, opened: bool = False) -> Markup:
    fragment: Markup = _macros().details(title, body, opened)
    return fragment


def _flat(value: dict[str, Any], prefix: str = "") -> list[list[Any]]:
    """Nested values as rows of a dotted name and a text."""
    rows: list[list[Any]] = []
    for key, part in value.items():
        name = f"{prefix}{key}"
        rows += _flat(part, f"{name}.") if isinstance(part, dict) else [[name, _plain(part)]]
    return rows


def _plain(value: Any) -> str:
    if value is None:
        return "none"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
