"""A comparison's files: a page that loads nothing and trusts no name, JSON and CSV that agree."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from pathlib import Path

import pytest
from rich.console import Console

from bipline.comparison.curves import spans
from bipline.comparison.files import comparison_csv, comparison_json
from bipline.comparison.report import PARTS, render_comparison
from bipline.comparison.selection import best
from bipline.face.tables import print_tables
from bipline.settings.sweep import Selection
from bipline.values.combination import Choice, Combination
from bipline.values.comparison import (
    Change,
    ComparedCalibration,
    ComparedModel,
    Comparison,
    Compensated,
    Cost,
    Measured,
    Outcome,
    Row,
)
from bipline.values.paired import PairedDifference
from bipline.values.plan import Budget
from bipline.values.record import EvaluationRecord, Perplexity
from bipline.values.summary import BeforeAfter
from tests.delivery.test_report import HOSTILE, Page
from tests.mlflow_tracked import tracked_at

DID = Compensated(
    forms={"none": 1, "obs": 3}, fitted_tokens=90, held_out_tokens=10, error_without=(0.5, 0.25),
    error=(0.25, 0.125),
)  # fmt: skip
PROTOCOL = {"seqlen": 16, "texts": {"one": "aa"}}


def perplexity(value: float) -> Perplexity:
    return Perplexity(value=value, nll=value / 100, tokens=90)


def row(
    criterion: str, ratio: float, seed: int = 0, value: float | None = 60.0, **more: str
) -> Row:
    text = more.get("text", "one")
    compensation = Choice.parse(more.get("compensation", "none"))
    combination = Combination(
        model=more.get("model", "llama"), calibration="books", criterion=Choice.parse(criterion),
        allocation=Choice(name="uniform"), ratio=ratio, seed=seed, alias=more.get("alias"),
        compensation=compensation,
    )  # fmt: skip
    if value is None:
        return Row.of(combination, Outcome(refusal=more.get("refusal", "it cannot be")))
    measured = Measured(
        plan_digest="p", tensor_digest="t", protocol_digest="d",
        parameters=BeforeAfter(before=1000, after=int(1000 * (1 - ratio))),
        ratio=Budget(asked=ratio, of="blocks", reached_blocks=ratio, reached_total=ratio / 2),
        widths=((2, 8),), file_bytes=4000, perplexity={text: perplexity(value)},
        change={text: Change(nll=(value - 50) / 100, perplexity=value - 50)},
        compensated=DID if combination.compensates else None,
    )  # fmt: skip
    cost = Cost(seconds={"score": 1.0, "allocate": 0.5, "prune": 0.25, "evaluate": 8.0})
    return Row.of(combination, Outcome(measured=measured, cost=cost))


def comparison(*rows: Row, model: str = "llama", text: str = "one") -> Comparison:
    record = EvaluationRecord(
        tensor_digest="0" * 64, parameters=1000, file_bytes=8000,
        perplexity={text: perplexity(50.0)}, protocol=PROTOCOL, environment={"processor": "x"},
    )  # fmt: skip
    return Comparison(
        models={model: ComparedModel(source=f"/somewhere/{model}", record=record)},
        calibrations={
            "books": ComparedCalibration(source="/x/books.txt", sha256="b", samples=8, seqlen=16)
        },
        rows=rows,
    )


@pytest.fixture
def compared() -> Comparison:
    seeds = [row("wanda-sp", 0.2, seed, 60.0 + seed) for seed in (0, 1, 2)]
    return comparison(
        *seeds, row("wanda-sp", 0.4, value=70.0), row("flap:metric=ifv", 0.2, value=65.0),
        row("flap:metric=ifv", 0.4, value=66.0), row("random", 0.4, value=None),
    )  # fmt: skip


def test_every_part_is_there_and_the_bytes_are_the_same(compared: Comparison) -> None:
    text = render_comparison(compared)
    assert text == render_comparison(Comparison.model_validate_json(compared.model_dump_json()))
    places = [text.index(f'<section id="{part.identifier}">') for part in PARTS]
    assert places == sorted(places)
    words = " ".join(Page(text).words)
    for shown in ("dense", "61.00 ± 1.00 (60.00 to 62.00)", "it cannot be", "flap:metric=ifv"):
        assert shown in words
    assert "/somewhere" not in text and "/x/" not in text, "paths are of no use to a reader"


def test_nothing_is_loaded_and_nothing_runs(compared: Comparison) -> None:
    text = render_comparison(compared)
    page = Page(text)
    assert not {"script", "link", "img", "iframe", "object", "use", "image"} & set(page.tags)
    for name, value in page.attributes:
        assert not name.startswith("on")
        if name in {"href", "src", "xlink:href", "action"}:
            assert value.startswith("#")
    assert "url(" not in text and "@import" not in text


def test_hostile_names_are_text() -> None:
    rows = [
        row("wanda-sp", 0.2, model=HOSTILE, text=HOSTILE),
        row(f"flap:metric={HOSTILE}", 0.3, model=HOSTILE, text=HOSTILE),
        row("random", 0.3, value=None, model=HOSTILE, refusal=HOSTILE),
    ]
    text = render_comparison(comparison(*rows, model=HOSTILE, text=HOSTILE))
    assert "<script" not in text
    assert HOSTILE in "".join(Page(text).words)


def test_there_is_one_curve_a_method_with_a_mark_a_combination(compared: Comparison) -> None:
    text = render_comparison(compared)
    picture = text[text.index('aria-label="perplexity on one') :]
    picture = picture[: picture.index("</svg>")]
    assert picture.count("<title>") == 4
    lines = [part for part in picture.split("<path ")[1:] if "L" in part.split('d="')[1]]
    assert len([line for line in lines if line.startswith('fill="none"')]) == 2
    # One of four combinations has seeds that differ, and a whisker for them.
    whiskers = re.findall(r'd="M[\d.]+ [\d.]+V', picture)
    assert len(whiskers) == 1
    assert "dense, 50.00" in picture, "what all of them are held against"
    for axis in ("perplexity on one", "parameters left, % of the dense model"):
        assert f">{axis}</text>" in picture


def test_one_ratio_draws_no_axis_of_ratios() -> None:
    rows = [row("wanda-sp", 0.2, value=65.0), row("flap:metric=ifv", 0.2, value=60.0)]
    text = render_comparison(comparison(*rows))
    assert "perplexity on one against parameters" not in text
    section = text[text.index('<section id="curves">') : text.index('<section id="cost">')]
    words = " ".join(Page(section).words)
    order = [words.index(name) for name in ("dense", "flap:metric=ifv, uniform", "wanda-sp")]
    assert order == sorted(order), "the best first, below the dense model"
    assert "llama: perplexity on one, ratio 0.2." in words


def test_one_seed_is_shown_with_the_interval_of_its_change() -> None:
    alone = row("wanda-sp", 0.2, value=60.0)
    assert alone.measured
    pair = PairedDifference(difference=0.1, stderr=0.05, low=0.0, high=0.2, n=9)
    change = {"one": Change(nll=0.1, perplexity=10.0, paired=pair)}
    told = alone.model_copy(
        update={"measured": alone.measured.model_copy(update={"change": change})}
    )
    [span] = spans(comparison(told), "llama", "one")["wanda-sp, uniform"]
    assert (span.low, span.high) == pytest.approx((50.0, 50.0 * math.exp(0.2)))
    assert span.text == "60.00 (50.00 to 61.07)"


@pytest.fixture
def corrected() -> Comparison:
    return comparison(
        row("wanda-sp", 0.2, value=65.0), row("wanda-sp", 0.4, value=70.0),
        row("wanda-sp", 0.2, value=60.0, compensation="obs:ridge=0.1"),
        row("wanda-sp", 0.4, value=66.0, compensation="obs:ridge=0.1"),
        row("llm-bip-exact", 0.4, value=62.0, compensation="obs", alias="auto"),
    )  # fmt: skip


def test_compensation_has_a_column_and_a_curve(corrected: Comparison) -> None:
    text = render_comparison(corrected)
    words = " ".join(Page(text).words)
    assert "Compensation" in words and "obs:ridge=0.1 (1 none, 3 obs)" in words
    assert "stands for llm-bip-exact, uniform, obs" in words
    names = ["wanda-sp, uniform", "wanda-sp, uniform, obs:ridge=0.1",
             "auto (llm-bip-exact, uniform, obs)"]  # fmt: skip
    for part in ("curves", "cost"):
        section = text[text.index(f'<section id="{part}">') :]
        shown = " ".join(Page(section[: section.index("</section>") + len("</section>")]).words)
        assert all(name in shown for name in names)


def test_csv_and_json_say_what_was_corrected(corrected: Comparison) -> None:
    lines = list(csv.DictReader(io.StringIO(comparison_csv(corrected))))[1:]
    rows = json.loads(comparison_json(corrected))["rows"]
    assert [line["compensation"] for line in lines] == [
        "none", "none", "obs:ridge=0.1", "obs:ridge=0.1", "obs",
    ]  # fmt: skip
    assert rows[2]["combination"]["compensation"] == {"name": "obs", "options": {"ridge": "0.1"}}
    assert rows[2]["measured"]["compensated"]["forms"] == {"none": 1, "obs": 3}
    assert lines[0]["corrected"] == lines[0]["block_error"] == ""
    assert lines[2]["corrected"] == "1 none, 3 obs"
    assert (float(lines[2]["block_error_without"]), float(lines[2]["block_error"])) == (0.75, 0.375)
    assert lines[4]["alias"] == rows[4]["combination"]["alias"] == "auto"
    assert lines[4]["method"] == "auto (llm-bip-exact, uniform, obs)"
    assert lines[4]["criterion"] == "llm-bip-exact"


def test_the_table_of_the_console_has_it_too(corrected: Comparison) -> None:
    console = Console(width=200, record=True, file=io.StringIO())
    print_tables(console, corrected)
    lines = console.export_text().splitlines()
    [head] = [line for line in lines if line.startswith("method")]
    assert head.split()[:3] == ["method", "compensation", "ratio"]
    [auto] = [line for line in lines if line.startswith("auto (llm-bip-exact, uniform) ")]
    assert "obs (1 none, 3 obs)" in auto


def test_the_best_may_be_a_compensated_row(corrected: Comparison) -> None:
    at_most = {"parameters_ratio": 0.7, "perplexity_increase.one": 0.3}
    found = best(corrected, Selection(minimise="perplexity.one", at_most=at_most))
    assert found and found.value == 62.0
    assert found.rows[0].combination.method == "auto (llm-bip-exact, uniform, obs)"


def test_json_has_a_version_and_the_spread(compared: Comparison) -> None:
    value = json.loads(comparison_json(compared))
    assert value["schema_version"] == 2
    assert len(value["rows"]) == 7
    first = value["spread"][0]
    assert first["seeds"] == [0, 1, 2]
    assert first["perplexity"]["one"] == {
        "mean": 61.0, "least": 60.0, "most": 62.0, "deviation": 1.0,
    }  # fmt: skip
    assert value["models"]["llama"]["record"]["protocol"]["digest"]
    refused = value["spread"][-1]
    assert refused["refusals"] == ["it cannot be"] and refused["parameters"] is None


def test_csv_has_a_line_a_row_after_dense(compared: Comparison) -> None:
    lines = list(csv.DictReader(io.StringIO(comparison_csv(compared))))
    assert [line["criterion"] for line in lines[:2]] == ["dense", "wanda-sp"]
    assert len(lines) == 8
    value = json.loads(comparison_json(compared))
    for line, told in zip(lines[1:], value["rows"], strict=True):
        assert line["refusal"] == (told["refusal"] or "")
        if told["measured"]:
            assert float(line["perplexity.one"]) == told["measured"]["perplexity"]["one"]["value"]
            assert float(line["nll_increase.one"]) == told["measured"]["change"]["one"]["nll"]
            assert int(line["parameters"]) == told["measured"]["parameters"]["after"]
            assert float(line["seconds"]) == 9.75
    assert lines[5]["criterion"] == "flap:metric=ifv"


def test_a_comparison_in_which_all_was_refused_has_a_page() -> None:
    text = render_comparison(comparison(row("random", 0.4, value=None)))
    assert "Nothing was measured" in " ".join(Page(text).words)


@pytest.mark.parametrize(
    ("minimise", "at_most", "expected"),
    [
        ("perplexity.one", {}, ("wanda-sp", 0.2, 61.0)),
        ("perplexity.one", {"parameters_ratio": 0.7}, ("flap:metric=ifv", 0.4, 66.0)),
        ("parameters", {"perplexity_increase.one": 0.33}, ("flap:metric=ifv", 0.4, 600.0)),
        ("parameters", {"perplexity_increase.one": 0.25}, ("wanda-sp", 0.2, 800.0)),
        # Seed 2 of wanda-sp is above it, whatever the mean.
        ("parameters", {"perplexity_increase.one": 0.23}, None),
        ("parameters", {"nll_increase.one": 0.15, "seconds": 9.0}, None),
    ],
)
def test_the_best_is_the_least_within_the_limits(
    compared: Comparison,
    minimise: str,
    at_most: dict[str, float],
    expected: tuple[str, float, float] | None,
) -> None:
    selection = Selection(minimise=minimise, at_most=at_most)
    selection.check(["one"])
    found = best(compared, selection)
    if expected is None:
        assert found is None
    else:
        tried = found and found.rows[0].combination
        assert found and tried
        assert (tried.criterion.label, tried.ratio, found.value) == expected


@pytest.mark.parametrize("name", ["perplexity", "perplexity.two", "speed", "parameters.one"])
def test_figures_that_rows_do_not_have_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is no figure; known: parameters"):
        Selection(minimise=name).check(["one"])


@pytest.mark.parametrize("text", ["", ":", "flap:", "flap:metric", "flap:metric=", "flap:a=1:a=2"])
def test_choices_that_cannot_be_read(text: str) -> None:
    with pytest.raises(ValueError, match=r"write NAME|name is missing"):
        Choice.parse(text)


def test_choices_are_written_as_they_are_read() -> None:
    for text in ("flap", "flap:metric=ifv", "flap:metric=ifv:square_attention=false"):
        assert Choice.parse(text).label == text


def test_child_runs_hold_what_was_tried_and_what_came_out(
    compared: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    from bipline.comparison.tracking import track_comparison
    from bipline.delivery.registries.mlflow_service import prepare_tracking

    uri = prepare_tracking(tmp_path, "sweep")
    with tracked_at(uri, "sweep"):
        run_id = track_comparison(compared, tmp_path, {"a": {"b": 1}}, {"c": "2"})
        client = mlflow.MlflowClient(uri)
        parent = client.get_run(run_id)
        found = client.search_runs(
            [parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run_id}'"
        )
    assert parent.data.metrics["dense.perplexity.one"] == 50.0
    assert (parent.data.params["a.b"], parent.data.tags["c"]) == ("1", "2")
    assert len(found) == 7 and {run.info.status for run in found} == {"FINISHED"}
    runs = {run.info.run_name: run.data for run in found}
    assert runs["row-005"].params["criterion"] == "flap:metric=ifv"
    assert runs["row-005"].metrics["perplexity_increase.one"] == 0.3
    assert runs["row-007"].tags["refusal"] == "it cannot be"


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1+1", "@SUM(A1)", "\t=1", "plain", "a=b"])
def test_a_name_is_no_formula_in_csv(compared: Comparison, name: str) -> None:
    """A text's name comes from outside; a figure that is negative stays a number."""
    (model,) = compared.models
    renamed = compared.model_copy(update={"models": {name: compared.models[model]}, "rows": ()})
    (line,) = csv.DictReader(io.StringIO(comparison_csv(renamed)))
    assert line["model"] == (name if name[0].isalpha() else f"'{name}")
    assert float(line["parameters"]) > 0
