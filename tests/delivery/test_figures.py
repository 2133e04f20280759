"""Figures: whoever tells a number takes its name, title and value from one table."""

from __future__ import annotations

import csv
import io
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bipline.comparison.files import comparison_csv
from bipline.comparison.selection import best
from bipline.comparison.spread import repeated, table_lines
from bipline.delivery.card import escaped, render_card
from bipline.delivery.contents import PackageContents
from bipline.delivery.report import PARTS
from bipline.face.tables import evaluation_table
from bipline.settings.sweep import Selection
from bipline.values.combination import Choice, Combination
from bipline.values.comparison import (
    Change,
    ComparedModel,
    Comparison,
    Cost,
    Measured,
    Outcome,
    Row,
)
from bipline.values.figures import (
    KINDS,
    ROW_FIGURES,
    TEXT_FIGURES,
    figures_of,
    kind_of,
    label_of,
    row_figures,
    row_names,
    title_of,
)
from bipline.values.metrics import metrics_of
from bipline.values.plan import Budget
from bipline.values.record import EvaluationRecord, Perplexity, Speed, TaskResult
from bipline.values.summary import BeforeAfter
from tests.delivery.conftest import altered, with_recovery

NAMES = st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=8)
COUNTS = st.integers(1, 10**12)
RATES = st.floats(0.5, 1e6)
SHARES = st.floats(0, 1)
PERPLEXITIES = st.builds(
    Perplexity, value=st.floats(1, 1e30), nll=st.floats(0, 70), tokens=st.integers(1, 99)
)
TASKS = st.builds(
    TaskResult, acc=SHARES, acc_norm=st.none() | SHARES, stderr=st.none() | SHARES,
    n=st.integers(1, 99),
)  # fmt: skip
SPEEDS = st.builds(
    Speed, **dict.fromkeys(
        ("prefill_tokens_per_second", "prefill_median_tokens_per_second",
         "decode_tokens_per_second", "decode_median_tokens_per_second"), RATES,
    ), **dict.fromkeys(("batch_size", "prompt_tokens", "decoded_tokens", "repeats"), st.just(1)),
)  # fmt: skip


@st.composite
def records(draw: st.DrawFn) -> dict[str, EvaluationRecord]:
    """Models that were measured on the same texts and tasks."""
    texts, tasks = (draw(st.sets(NAMES, max_size=2)) for _ in range(2))
    return {
        model: draw(st.builds(
            EvaluationRecord, tensor_digest=st.just("0"), parameters=COUNTS, file_bytes=COUNTS,
            perplexity=st.fixed_dictionaries(dict.fromkeys(texts, PERPLEXITIES)),
            tasks=st.fixed_dictionaries(dict.fromkeys(tasks, TASKS)),
            speed=st.none() | SPEEDS, protocol=st.just({}), environment=st.just({}),
        ))
        for model in ("dense", "pruned", "recovered")
    }  # fmt: skip


def expected(told: dict[str, EvaluationRecord]) -> dict[str, list[str]]:
    """The texts of every figure that tables show, by name."""
    found = [figures_of(record) for record in told.values()]
    names = {name for figures in found for name in figures if kind_of(name).tabled}
    return {
        name: [figures[name].text if name in figures else "not measured" for figures in found]
        for name in names
    }


class Cells(HTMLParser):
    """The rows of an HTML table's body."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.feed(text.partition("<tbody>")[2].partition("</tbody>")[0])

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "tr":
            self.rows.append([])
        else:
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.rows[-1][-1] += data.replace("\N{NO-BREAK SPACE}", " ")


@settings(max_examples=40, deadline=None)
@given(told=records())
def test_tables_card_and_report_show_the_same_figures(
    contents: PackageContents, told: dict[str, EvaluationRecord]
) -> None:
    package = altered(with_recovery(contents), records=told)
    shown = expected(told)
    terminal = zip(*(column.cells for column in evaluation_table(told).columns), strict=True)
    assert {str(label): list(map(str, cells)) for label, *cells in terminal} == {
        label_of(name): texts for name, texts in shown.items()
    }
    card = [line.strip("|").split(" | ") for line in render_card(package).splitlines()
            if line.startswith("| ")][1:]  # fmt: skip
    rows = {label.strip(): cells[:3] for label, *cells in card if label.strip() != "---"}
    assert rows == {escaped(title_of(name)): texts for name, texts in shown.items()}
    report = Cells(str(PARTS[0].html(package))).rows
    assert {label: cells[:3] for label, *cells in report} == {
        title_of(name): texts for name, texts in shown.items()
    }


@settings(max_examples=40, deadline=None)
@given(told=records())
def test_mlflow_is_told_the_values_that_tables_show(
    contents: PackageContents, told: dict[str, EvaluationRecord]
) -> None:
    metrics = metrics_of(told, contents.plan, with_recovery(contents).recovery)
    assert metrics["ratio/reached_blocks"] == contents.plan.budget.reached_blocks
    assert metrics["recovery/accepted"] == 1.0
    for name in metrics:
        assert name.partition("/")[2].partition(".")[0] in KINDS
    for model, record in told.items():
        for name, figure in figures_of(record).items():
            assert metrics[f"{model}/{name}"] == figure.value
            assert metrics.get(f"{model}/{name}.stderr") == figure.error
        for text, found in record.perplexity.items():
            assert metrics[f"{model}/perplexity.{text}"] == found.value
        for task, result in record.tasks.items():
            assert metrics[f"{model}/acc.{task}"] == result.acc


def test_a_change_against_dense_is_told_where_dense_is_known() -> None:
    dense = record_of(Perplexity(value=50.0, nll=4.0, tokens=9), 1000)
    pruned = record_of(Perplexity(value=60.0, nll=4.5, tokens=9), 800)
    found = figures_of(pruned, dense)
    assert found["parameters_ratio"].value == 0.8
    assert found["perplexity_increase.one"].value == pytest.approx(0.2)
    assert found["nll_increase.one"].value == 0.5
    assert not {"parameters_ratio", "nll_increase.one"} & set(figures_of(pruned))
    lost = record_of(Perplexity(value=1e30, nll=69.0, tokens=9), 800)
    assert figures_of(lost, dense)["perplexity_increase.one"].value > 1e20


def record_of(perplexity: Perplexity, parameters: int) -> EvaluationRecord:
    return EvaluationRecord(
        tensor_digest="0", parameters=parameters, file_bytes=8 * parameters, protocol={},
        perplexity={"one": perplexity}, environment={},
    )  # fmt: skip


@st.composite
def comparisons(draw: st.DrawFn) -> Comparison:
    """One combination with a few seeds, on one text."""
    dense = record_of(Perplexity(value=50.0, nll=4.0, tokens=9), 1000)
    rows = []
    for seed in range(draw(st.integers(1, 3))):
        found = draw(st.builds(Perplexity, value=st.floats(51, 1e6), nll=RATES, tokens=COUNTS))
        measured = Measured(
            plan_digest="p", tensor_digest="t", protocol_digest="d", file_bytes=draw(COUNTS),
            parameters=BeforeAfter(before=1000, after=draw(st.integers(1, 1000))), widths=(),
            ratio=Budget(asked=0.2, of="blocks", reached_blocks=0.2, reached_total=0.1),
            perplexity={"one": found},
            change={"one": Change(nll=found.nll - 4.0, perplexity=found.value - 50.0)},
        )  # fmt: skip
        cost = Cost(seconds={"score": draw(RATES)}, peak_anonymous_bytes=draw(COUNTS))
        chosen = {name: Choice(name="x") for name in ("criterion", "allocation")}
        tried = Combination(model="m", calibration="c", ratio=0.2, seed=seed, **chosen)
        rows.append(Row.of(tried, Outcome(measured=measured, cost=cost)))
    model = ComparedModel(source="m", record=dense)
    return Comparison(models={"m": model}, calibrations={}, rows=tuple(rows))


@settings(max_examples=40, deadline=None)
@given(compared=comparisons())
def test_csv_table_and_selection_tell_the_rows_figures(compared: Comparison) -> None:
    lines = list(csv.DictReader(io.StringIO(comparison_csv(compared))))
    for row, line in zip(compared.rows, lines[1:], strict=True):
        figures = row_figures(row)
        assert set(row_names(["one"])) <= set(figures) <= set(line)
        for name, figure in figures.items():
            assert float(line[name]) == figure.value
    [each] = repeated(compared.rows)
    for name in row_names(compared.texts):
        values = [row_figures(row)[name].value for row in compared.rows]
        found = best(compared, Selection(minimise=name, at_most={name: max(values)}))
        spread = each.over(name)
        assert found and spread and found.value == spread.mean
        assert best(compared, Selection(minimise=name, at_most={name: min(values) - 1})) is None
        cell = table_lines(compared, "m", [name], ranged=())[1][-1]
        most = max(values) if name == "peak_bytes" else found.value
        assert cell == kind_of(name).text(most)


def test_every_name_of_a_row_is_a_kind() -> None:
    assert {*ROW_FIGURES, *TEXT_FIGURES} <= set(KINDS)


@pytest.mark.parametrize("name", ["speed", "", "perplexities.one"])
def test_a_name_without_a_kind_is_refused(name: str) -> None:
    with pytest.raises(KeyError):
        kind_of(name)


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("parameters", 1234567, "1,234,567"), ("file_bytes", 14_700_000, "14.70 MB"),
        ("perplexity.x", 1234.567, "1,234.57"), ("perplexity.x", 1e9, "1.00e+09"),
        ("acc.x", 0.83, "83.0 %"), ("nll_increase.x", 0.25, "+0.250"), ("seconds", 9.75, "9.8"),
    ],
)  # fmt: skip
def test_values_read_as_their_kind_says(name: str, value: Any, text: str) -> None:
    assert kind_of(name).text(value) == text
