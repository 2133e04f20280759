"""Rows with tasks and speed: the figures of evaluate, nothing twice, and selection by them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import bipline
from bipline.comparison.files import comparison_csv, comparison_json
from bipline.comparison.report import render_comparison
from bipline.comparison.selection import best
from bipline.comparison.spread import beside_lines
from bipline.quality import evaluate as core
from bipline.settings.sweep import Selection
from bipline.stages import speed as timing
from bipline.values.comparison import Comparison, Measured, Row
from bipline.values.differences import paired_differences
from bipline.values.figures import row_figures
from bipline.values.paired import paired_answers
from bipline.values.record import TaskResult
from bipline.values.speed import Speed, Speeds
from tests.comparing import SAMPLES, SEQLEN, Bench
from tests.comparison.test_comparison_report import comparison, row

SPEED: dict[str, Any] = {
    "speed": True, "speed_repeats": 2, "speed_decoded_tokens": 2, "speed_batch": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def bench(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench.of(llama, tmp_path_factory.mktemp("rows"))


def compare(bench: Bench, **asked: Any) -> Comparison:
    given = {"tasks": "cloze", "task_data": bench.task_data, **SPEED, **asked}
    return bipline.compare(
        bench.model, bench.folder / "out", calibration=bench.folder / "calibration.txt",
        texts=bench.texts, criteria="magnitude", ratios="0.3", samples=SAMPLES, seqlen=SEQLEN,
        evaluation_seqlen=SEQLEN, device="cpu", state=bench.folder / "state", keep=True, **given,
    )  # fmt: skip


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What is measured: texts by name, ``tasks`` and ``speed``."""
    seen: list[str] = []

    def watched(module: Any, name: str, told: Callable[..., str]) -> None:
        actual = getattr(module, name)

        def call(*given: Any) -> Any:
            seen.append(told(*given))
            return actual(*given)

        monkeypatch.setattr(module, name, call)

    watched(core, "measure_text", lambda loop, windows, name, *more: str(name))
    watched(core, "ask", lambda *given: "tasks")
    watched(timing, "measure_speed", lambda *given: "speed")
    yield seen


@pytest.mark.slow
def test_what_is_new_is_measured_and_is_what_evaluate_gives(
    bench: Bench, measured: list[str]
) -> None:
    plain = compare(bench, tasks="", speed=None)
    texts = ["one", "two"]
    assert measured == [*texts, *texts]  # dense, then the row
    found = compare(bench)
    assert measured[4:] == ["tasks", "tasks", "speed"]
    assert compare(bench) == found and compare(bench, tasks="", speed=None) == plain
    assert len(measured) == 7

    [row] = found.rows
    assert row.measured and row.directory
    records = bipline.evaluate(
        bench.folder / "out" / row.directory, texts=bench.texts, tasks="cloze",
        task_data=bench.task_data, baseline=bench.model, seqlen=SEQLEN, device="cpu",
        state=bench.folder / "state", **SPEED,
    )  # fmt: skip
    model, dense = records["model"], records["baseline"]
    assert row.measured.tasks == model.tasks
    assert row.measured.perplexity == model.perplexity
    assert row.measured.protocol_digest == model.protocol_digest
    told = found.models[bench.model.name].record
    assert (told.tasks, told.protocol) == (dense.tasks, dense.protocol)
    pairs = paired_differences(dense, model)
    assert row.measured.answers == {n: p for n, p in pairs.items() if n.startswith("acc")}
    assert row.measured.speeds and set(row.measured.speeds.models) == {"dense", "pruned"}
    # Seconds are those of making the model and of perplexity, so that methods compare.
    assert row.cost == plain.rows[0].cost


def speeds(factor: float) -> Speeds:
    """Rates of the dense model, and of one that is so many times as fast."""

    def speed(rate: float) -> Speed:
        return Speed(
            prefill_tokens_per_second=rate, prefill_median_tokens_per_second=rate,
            decode_tokens_per_second=rate, decode_median_tokens_per_second=rate, batch_size=1,
            prompt_tokens=8, decoded_tokens=8, repeats=5, prefill_quartiles=(0.9 * rate, rate),
            decode_quartiles=(0.9 * rate, rate),
        )  # fmt: skip

    return Speeds(models={"dense": speed(100.0), "pruned": speed(100.0 * factor)})


def answered(row: Row, acc: float, factor: float) -> Row:
    """A row with a task and speeds; the dense model answers 10 rows of 10."""
    right = round(10 * acc)
    pair = paired_answers([True] * 10, [True] * right + [False] * (10 - right))
    assert isinstance(row.measured, Measured)
    more = {
        "tasks": {"q": TaskResult(acc=acc, acc_norm=None, stderr=0.125, n=10)},
        "answers": {"acc.q": pair}, "speeds": speeds(factor),
    }  # fmt: skip
    return row.model_copy(update={"measured": row.measured.model_copy(update=more)})


@pytest.fixture
def told() -> Comparison:
    rows = [
        answered(row("wanda-sp", 0.2), 0.9, 1.05),
        answered(row("wanda-sp", 0.4, value=80.0), 0.5, 1.5),
        answered(row("random", 0.2, value=70.0), 0.7, 1.2),
    ]
    made = comparison(*rows)
    record = made.models["llama"].record
    dense = record.model_copy(
        update={"tasks": {"q": TaskResult(acc=1.0, acc_norm=None, stderr=0.0, n=10)}}
    )
    model = made.models["llama"].model_copy(update={"record": dense})
    return made.model_copy(update={"models": {"llama": model}})


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        ({"maximise": "acc.q"}, ("wanda-sp", 0.2, 0.9)),
        ({"maximise": "acc.q", "at_most": {"perplexity.one": 75.0}}, ("wanda-sp", 0.2, 0.9)),
        ({"maximise": "prefill_factor"}, ("wanda-sp", 0.4, 1.5)),
        ({"maximise": "decode_factor", "at_least": {"acc.q": 0.6}}, ("random", 0.2, 1.2)),
        ({"minimise": "parameters", "at_least": {"acc_change.q": -0.35}}, ("wanda-sp", 0.2, 800)),
        # Within the spread of the repeats no factor is told, and none is met.
        ({"maximise": "acc.q", "at_least": {"prefill_factor": 1.01}}, ("random", 0.2, 0.7)),
        ({"minimise": "parameters", "at_least": {"acc.q": 0.95}}, None),
    ],
)
def test_selection_goes_by_accuracy_and_speed(
    told: Comparison, selection: dict[str, Any], expected: tuple[str, float, float] | None
) -> None:
    chosen = Selection(**selection)
    chosen.check(["one"], ["q"], with_speed=True)
    found = best(told, chosen)
    if expected is None:
        assert found is None
        return
    assert found and found.figure == chosen.figure
    tried = found.rows[0].combination
    assert (tried.criterion.label, tried.ratio, found.value) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("selection", "words"),
    [
        ({"minimise": "acc.q"}, "acc.q is better where it is higher; write maximise"),
        ({"maximise": "perplexity.one"}, "better where it is lower; write minimise"),
        ({"maximise": "prefill_factor"}, "is no figure"),
        ({"maximise": "acc.other"}, "is no figure"),
        ({"minimise": "parameters", "at_least": {"acc.other": 0.5}}, "is no figure"),
    ],
)
def test_a_selection_that_cannot_be(selection: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Selection(**selection).check(["one"], ["q"])


@pytest.mark.parametrize("given", [{}, {"minimise": "parameters", "maximise": "acc.q"}])
def test_one_figure_decides(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="give one of minimise and maximise"):
        Selection(**given)


def test_files_and_tables_tell_errors_and_paired_changes(told: Comparison) -> None:
    lines = list(csv.DictReader(io.StringIO(comparison_csv(told))))
    first = row_figures(told.rows[0])
    assert [line["acc.q"] for line in lines] == ["1.0", "0.9", "0.5", "0.7"]
    assert [line["acc.q.stderr"] for line in lines[:2]] == ["0.0", "0.125"]
    for name in ("acc_change.q", "acc_p.q", "prefill_tokens_per_second"):
        assert float(lines[1][name]) == first[name].value
    assert float(lines[1]["acc_change.q.stderr"]) == first["acc_change.q"].error
    assert [line["prefill_factor"] for line in lines[:3]] == ["", "", "1.5"]
    spread = json.loads(comparison_json(told))["spread"]
    assert spread[1]["accuracy"]["q"]["mean"] == 0.5
    shown = beside_lines(told, "llama")
    sign = "\N{PLUS-MINUS SIGN}"
    assert shown[0] == [
        "wanda-sp, uniform", "0.2", "accuracy, q", f"100.0 % {sign} 0.0 %", f"90.0 % {sign} 12.5 %",
        shown[0][5], "1.000",
    ]  # fmt: skip
    assert shown[0][5].startswith("no difference told (")
    assert [line[0] for line in shown].count("") == len(shown) - 3
    page = render_comparison(told)
    assert "Accuracy, q" in page and "no difference told" in page


def test_a_comparison_without_them_is_written_as_before() -> None:
    plain = comparison(row("wanda-sp", 0.2))
    value = plain.model_dump(mode="json")["rows"][0]["measured"]
    assert not value.keys() & {"tasks", "answers", "speeds"}
    assert Comparison.model_validate_json(plain.model_dump_json()) == plain
