"""The report of a comparison: one page to choose a method by, see :mod:`bipline.delivery.page`."""

from __future__ import annotations

from statistics import fmean

from markupsafe import Markup

from bipline import __version__
from bipline.comparison.curves import Span, by_method, curves_of, is_one_ratio, spans
from bipline.comparison.spread import (
    BESIDE,
    STARRED,
    beside_lines,
    sizes,
    table_lines,
)
from bipline.compression.descriptions import criterion_description
from bipline.delivery.compensation_text import IDEAS
from bipline.delivery.contents import portable_source
from bipline.delivery.curves import Frame, curves_picture, swatch
from bipline.delivery.page import (
    Lane,
    Part,
    figure,
    flat,
    folded,
    joined,
    lanes,
    render_page,
    table,
)
from bipline.values.comparison import Comparison
from bipline.values.figures import KINDS, perplexity_text, title_of

Content = tuple[str, Markup]
TITLE = "Comparison of methods on"


def render_comparison(comparison: Comparison) -> str:
    """The whole page."""
    measured = sum(row.measured is not None for row in comparison.rows)
    refused = len(comparison.rows) - measured
    title = f"{TITLE} {', '.join(comparison.models)}"
    subtitle = (
        f"{measured:,} pruned models were measured under one protocol"
        f"{f', {_combinations(refused)} refused' if refused else ''}. Perplexity on "
        f"{', '.join(comparison.texts)}."
    )
    return render_page(title, subtitle, PARTS, comparison, _facts(comparison))


def _combinations(count: int) -> str:
    return "one combination was" if count == 1 else f"{count:,} combinations were"


def _facts(comparison: Comparison) -> list[tuple[str, str]]:
    methods = dict.fromkeys(row.combination.method for row in comparison.rows)
    ratios = dict.fromkeys(f"{row.combination.ratio:g}" for row in comparison.rows)
    facts = [(name, f"{each.record.parameters:,} parameters")
             for name, each in comparison.models.items()]  # fmt: skip
    return [
        *facts,
        ("Methods", f"{len(methods):,}"),
        ("Ratios", ", ".join(ratios)),
        ("bipline", __version__),
    ]


def table_part(comparison: Comparison) -> Content:
    """A line a combination, the dense model first."""
    lead = (
        "By ratio, and there by perplexity on the first text. Where several seeds were run, the "
        "mean, the standard deviation, and the least and the most stand beside each other."
    )
    names = [
        *sizes(comparison), "parameters_ratio", "file_bytes",
        *(f"{kind}.{t}" for kind in ("perplexity", "nll_increase") for t in comparison.texts),
        *(f"acc.{task}" for task in comparison.tasks), "seconds", "peak_bytes",
    ]  # fmt: skip
    head = ["Compensation", "Ratio", *map(title_of, names)]
    tables = [
        table(
            table_lines(comparison, model, names, KINDS), [model, *head], numeric=True,
            caption=f"{model}: every combination that was measured",
        )
        for model in comparison.models
    ]  # fmt: skip
    starred = any(row.cost.sums_from for row in comparison.rows)
    return f"{lead}{f' {STARRED}.' if starred else ''}", joined(tables)


def beside_part(comparison: Comparison) -> Content:
    """Accuracies and speeds of every row beside the dense model's, where they were measured."""
    lead = (
        "Answers are compared row by row, with the 95 % interval; speeds by repeats that took "
        "turns with the dense model. A difference inside its interval is none."
    )
    tables = [
        table(
            lines,
            [model, *BESIDE[1:]],
            numeric=True,
            caption=f"{model}: accuracies and speeds beside the dense model's",
        )
        for model in comparison.models
        if (lines := beside_lines(comparison, model))
    ]
    return (lead, joined(tables)) if tables else ("Neither was measured.", Markup(""))


def curves_part(comparison: Comparison) -> Content:
    """Perplexity against size, a curve a method; without ratios to compare, a mark a method."""
    figures = [
        _quality(comparison, model, text, told)
        for model in comparison.models
        for text in comparison.texts
        if any((told := spans(comparison, model, text)).values())
    ]
    lead = (
        "Lower is better. A line through a mark spans the seeds or, where one was run, the 95 % "
        "interval of its change against the dense model, over the same windows."
    )
    return lead, joined(figures) if figures else Markup("<p>Nothing was measured.</p>")


def _quality(comparison: Comparison, model: str, text: str, told: dict[str, list[Span]]) -> Markup:
    dense = comparison.models[model].record.perplexity[text].value
    if is_one_ratio(told):
        return _marks(f"{model}: perplexity on {text}", dense, told)
    curves = curves_of(told)
    frame = Frame(
        f"perplexity on {text} against parameters, {model}",
        "parameters left, % of the dense model",
        f"perplexity on {text}",
        level=(f"dense, {perplexity_text(dense)}", dense),
    )
    return figure(
        f"{model}.",
        f"Perplexity on {text} by what is left of the parameters.",
        curves_picture(curves, frame),
        [(swatch(curve.number), curve.name) for curve in curves],
    )


def _marks(title: str, dense: float, told: dict[str, list[Span]]) -> Markup:
    found = sorted(
        ((span.value, name, span) for name, each in told.items() for span in each),
        key=lambda one: one[:2],
    )
    rows = [Lane("dense", dense, dense, dense, perplexity_text(dense))]
    rows += [Lane(name, span.low, value, span.high, span.text) for value, name, span in found]
    return lanes(f"{title}, ratio {found[0][2].repeated.combination.ratio:g}.", rows, "perplexity")


def cost_part(comparison: Comparison) -> Content:
    """Seconds and memory of each method, side by side."""
    pairs = [
        joined(
            [
                lanes(
                    f"{model}: seconds to score, allocate, compensate and prune; mean over rows, "
                    "and their range.",
                    seconds,
                    "s",
                ),
                lanes(
                    f"{model}: highest private memory of the process, evaluation included.",
                    memory,
                    "MB",
                ),
            ]
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
    rows = [
        *([alias, f"stands for {method}"] for alias, method in aliases),
        *([name, criterion_description(name).idea] for name in criteria),
        *([name, IDEAS[name]] for name in compensations),
    ]
    return "", table(rows, caption="What the names stand for")


def refused_part(comparison: Comparison) -> Content:
    """Combinations that cannot be, with the reason."""
    rows = [
        [row.combination.label, row.combination.model, row.refusal]
        for row in comparison.rows
        if row.refusal
    ]
    if not rows:
        return "Every combination could be measured.", Markup("")
    return "", table(rows, ["", "Model", "Reason"], caption="Combinations that cannot be, and why")


def protocol_part(comparison: Comparison) -> Content:
    """What everything was measured on and with, by digest and version."""
    shown = []
    for name, text in comparison.calibrations.items():
        told = {**text.model_dump(mode="json"), "source": portable_source(text.source)}
        shown.append(folded(f"Calibration text {name}", flat(told), opened=True))
    for name, model in comparison.models.items():
        record = model.record.to_json_value()
        about = {
            "source": portable_source(model.source), "revision": model.revision,
            "licence": model.licence,
            "tensors": model.record.tensor_digest, "parameters": f"{model.record.parameters:,}",
        }  # fmt: skip
        versions = {"bipline": __version__, **record["environment"]}
        shown += [
            folded(f"Model {name}", flat(about)),
            folded(f"Protocol, {name}", flat(record["protocol"])),
            folded(f"Versions and machine, {name}", flat(versions)),
        ]
    return "", joined(shown)


PARTS: tuple[Part[Comparison], ...] = (
    Part("table", "All combinations", table_part),
    Part("beside", "Tasks and speed", beside_part),
    Part("curves", "Quality against size", curves_part),
    Part("cost", "What it costs", cost_part),
    Part("methods", "Criteria and compensations", methods_part),
    Part("refused", "Refused", refused_part),
    Part("protocol", "Protocol and sources", protocol_part),
)


def _costs(comparison: Comparison, model: str) -> tuple[list[Lane], list[Lane]]:
    """Seconds (mean) and memory in MB (highest) of every measured method of a model."""
    seconds, memory = [], []
    for name, rows in by_method(comparison).items():
        costs = [row.cost for row in rows if row.measured and row.combination.model == model]
        if costs:
            spent = [cost.total_seconds - cost.seconds.get("evaluate", 0.0) for cost in costs]
            seconds.append(_bar(name, fmean(spent), spent, "s"))
            peaks = [cost.peak_anonymous_bytes / 1e6 for cost in costs]
            memory.append(_bar(name, max(peaks), peaks, "MB"))
    return seconds, memory


def _bar(name: str, value: float, values: list[float], unit: str) -> Lane:
    return Lane(name, min(values), value, max(values), f"{value:,.1f} {unit}", bar=True)
