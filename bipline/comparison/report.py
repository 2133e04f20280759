"""The report of a comparison: one page to choose a method by, see :mod:`bipline.delivery.page`."""

from __future__ import annotations

from statistics import fmean

from markupsafe import Markup

from bipline import __version__
from bipline.comparison.pictures import Curve, Point, bars_picture, curves_picture, swatch
from bipline.comparison.spread import (
    BESIDE,
    STARRED,
    beside_lines,
    named,
    repeated,
    table_lines,
)
from bipline.compression.descriptions import criterion_description
from bipline.delivery.compensation_text import IDEAS
from bipline.delivery.contents import portable
from bipline.delivery.page import Part, details, figure, flat, joined, render_page, table
from bipline.values.comparison import Comparison, Row
from bipline.values.figures import KINDS, title_of

Content = tuple[str, Markup]
Bar = tuple[str, float]
TITLE = "Comparison of methods on"


def render_comparison(comparison: Comparison) -> str:
    """The whole page."""
    measured = sum(row.measured is not None for row in comparison.rows)
    refused = len(comparison.rows) - measured
    title = f"{TITLE} {', '.join(comparison.models)}"
    subtitle = (
        f"{measured:,} pruned models were measured under one protocol"
        f"{f', {refused:,} combinations were refused' if refused else ''}. Perplexity on "
        f"{', '.join(comparison.texts)}."
    )
    return render_page(title, subtitle, PARTS, comparison)


def table_part(comparison: Comparison) -> Content:
    """A line a combination, the dense model first."""
    lead = (
        "By ratio, and there by perplexity on the first text. Where several seeds were run, the "
        "mean, the standard deviation, and the least and the most stand beside each other."
    )
    names = [
        "parameters", "parameters_ratio", "file_bytes",
        *(f"{kind}.{t}" for kind in ("perplexity", "nll_increase") for t in comparison.texts),
        *(f"acc.{task}" for task in comparison.tasks), "seconds", "peak_bytes",
    ]  # fmt: skip
    head = ["Compensation", "Ratio", *map(title_of, names)]
    tables = [
        table(table_lines(comparison, model, names, KINDS), [model, *head], numeric=True)
        for model in comparison.models
    ]
    starred = any(row.cost.sums_from for row in comparison.rows)
    return f"{lead}{f' {STARRED}.' if starred else ''}", joined(tables)


def beside_part(comparison: Comparison) -> Content:
    """Accuracies and speeds of every row beside the dense model's, where they were measured."""
    lead = (
        "Answers are compared row by row, with the 95 % interval; speeds by repeats that took "
        "turns with the dense model. A difference inside its interval is none."
    )
    tables = [
        table(lines, [model, *BESIDE[1:]], numeric=True)
        for model in comparison.models
        if (lines := beside_lines(comparison, model))
    ]
    return (lead, joined(tables)) if tables else ("Neither was measured.", Markup(""))


def curves_part(comparison: Comparison) -> Content:
    """Perplexity over dense against parameters, a curve a method."""
    figures = [
        figure(
            f"{model}.",
            f"Perplexity on {text} above the dense model's, as a share of it, by parameters left.",
            curves_picture(curves, f"perplexity increase on {text} against parameters, {model}"),
            [(swatch(curve.number), curve.name) for curve in curves],
        )
        for model in comparison.models
        for text in comparison.texts
        if (curves := _curves(comparison, model, text))
    ]
    lead = "Lower is better; a line through a mark spans the seeds."
    return lead, joined(figures) if figures else Markup("<p>Nothing was measured.</p>")


def cost_part(comparison: Comparison) -> Content:
    """Seconds and memory of each method, side by side."""
    pairs = [
        joined(
            [
                figure(
                    f"{model}.",
                    "Seconds to score, allocate, compensate and prune, mean over rows.",
                    bars_picture(seconds, f"seconds by method, {model}", "s"),
                ),
                figure(
                    f"{model}.",
                    "Highest private memory of the process, evaluation included.",
                    bars_picture(memory, f"memory by method, {model}", "MB"),
                ),
            ],
            "pair",
        )
        for model in comparison.models
        for seconds, memory in [_costs(comparison, model)]
        if seconds
    ]
    shared = {
        f"{row.combination.criterion.label} from {row.cost.sums_from}"
        for row in comparison.rows
        if row.cost.sums_from
    }
    told = f" Scored from another's pass, which is counted there: {', '.join(sorted(shared))}."
    return f"As run here; other machines differ.{told if shared else ''}", joined(pairs)


def methods_part(comparison: Comparison) -> Content:
    """What names stand for, and each criterion and compensation in words of its own."""
    tried = [row.combination for row in comparison.rows]
    aliases = dict.fromkeys((each.alias, each.unnamed.method) for each in tried if each.alias)
    criteria = dict.fromkeys(each.criterion.name for each in tried)
    compensations = dict.fromkeys(each.compensation.name for each in tried if each.compensates)
    return "", table(
        [
            *([alias, f"stands for {method}"] for alias, method in aliases),
            *([name, criterion_description(name).idea] for name in criteria),
            *([name, IDEAS[name]] for name in compensations),
        ]
    )


def refused_part(comparison: Comparison) -> Content:
    """Combinations that cannot be, with the reason."""
    rows = [
        [row.combination.label, row.combination.model, row.refusal]
        for row in comparison.rows
        if row.refusal
    ]
    if not rows:
        return "Every combination could be measured.", Markup("")
    return "", table(rows, ["", "Model", "Reason"])


def protocol_part(comparison: Comparison) -> Content:
    """What everything was measured on and with, by digest and version."""
    folded = []
    for name, text in comparison.calibrations.items():
        told = {**text.model_dump(mode="json"), "source": portable(text.source)}
        folded.append(details(f"Calibration text {name}", table(flat(told)), opened=True))
    for name, model in comparison.models.items():
        record = model.record.to_json_value()
        about = {
            "source": portable(model.source), "revision": model.revision, "licence": model.licence,
            "tensors": model.record.tensor_digest, "parameters": f"{model.record.parameters:,}",
        }  # fmt: skip
        versions = {"bipline": __version__, **record["environment"]}
        folded += [
            details(f"Model {name}", table(flat(about))),
            details(f"Protocol, {name}", table(flat(record["protocol"]))),
            details(f"Versions and machine, {name}", table(flat(versions))),
        ]
    return "", joined(folded)


PARTS: tuple[Part[Comparison], ...] = (
    Part("table", "All combinations", table_part),
    Part("beside", "Tasks and speed", beside_part),
    Part("curves", "Quality against size", curves_part),
    Part("cost", "What it costs", cost_part),
    Part("methods", "Criteria and compensations", methods_part),
    Part("refused", "Refused", refused_part),
    Part("protocol", "Protocol and sources", protocol_part),
)


def _curves(comparison: Comparison, model: str, text: str) -> list[Curve]:
    """A method has the same number, so it looks the same, in every picture."""
    curves = []
    for number, (name, rows) in enumerate(_by_method(comparison).items()):
        points = [
            Point(
                left.mean, spread, f"{name}, ratio {each.combination.ratio:g}: {spread.mean:+.4g}"
            )
            for each in repeated(row for row in rows if row.combination.model == model)
            if (spread := each.over(f"perplexity_increase.{text}"))
            and (left := each.over("parameters"))
        ]
        if points:
            points.sort(key=lambda point: point.parameters)
            curves.append(Curve(name, number, tuple(points)))
    return curves


def _costs(comparison: Comparison, model: str) -> tuple[list[Bar], list[Bar]]:
    """Seconds (mean) and memory in MB (highest) of every measured method of a model."""
    seconds, memory = [], []
    for name, rows in _by_method(comparison).items():
        costs = [row.cost for row in rows if row.measured and row.combination.model == model]
        if costs:
            spent = [cost.total_seconds - cost.seconds.get("evaluate", 0.0) for cost in costs]
            seconds.append((name, fmean(spent)))
            memory.append((name, max(cost.peak_anonymous_bytes for cost in costs) / 1e6))
    return seconds, memory


def _by_method(comparison: Comparison) -> dict[str, list[Row]]:
    """The rows of each method, in the order of the grid."""
    found: dict[str, list[Row]] = {}
    for row in comparison.rows:
        found.setdefault(named(comparison, row.combination, row.combination.method), []).append(row)
    return found
