"""The benchmark on a real model: its rows are commands that there are, and nothing is run twice."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer.main

from benchmarks import real
from benchmarks.processes import Failed
from benchmarks.real_rows import DENSE, FIRST, MEASURES, METHODS, SPEED, rows
from benchmarks.real_tables import told, write_results
from benchmarks.real_tasks import answers_of, mean_accuracy, mean_change
from bipline.face.cli import application

BEGIN, END = "<!-- real: begin -->", "<!-- real: end -->"
LINES = [
    {"row": DENSE, "measure": "made", "value": {"parameters": 134_515_008, "bytes": 269_060_552}},
    {"row": DENSE, "measure": "novel", "value": {"value": 53.71}},
    {"row": "auto quick", "measure": "made", "value": {
        "processor_seconds": 190.4, "peak_anonymous_bytes": 9e8, "told": "3 min and 0.75 GB",
        "parameters": 112_949_568, "widths": [[3, 1120]],
        "bytes": 225_929_920,
    }},
    {"row": "auto quick", "measure": "novel", "value": {"value": 77.42}},
]  # fmt: skip


def test_rows_are_told_apart_and_have_flags_of_prune() -> None:
    every = rows()
    assert len({row.name for row in every}) == len(every)
    assert {row.name for row in every if row.first} == {DENSE, *FIRST}
    assert set(METHODS) < {row.name for row in every}
    commands = typer.main.get_command(application()).commands  # type: ignore[attr-defined]
    for row in every:
        command = commands["recover" if row.base else "prune"]
        flags = {option for each in command.params for option in each.opts}
        assert {word for word in row.flags if word.startswith("--")} <= flags
        assert row.flags or row.name == DENSE
    assert {row.base for row in every} - {""} <= {row.name for row in every}


def test_the_table_shows_what_is_there_and_names_what_is_not(tmp_path: Path) -> None:
    text = told(LINES)
    first, _, dense, quick, *_ = text.splitlines()
    columns = "row | groups / channels | M parameters | MB | novel | processor s | told | GB"
    assert first == f"| {columns} |"
    assert dense == "| dense | - | 134.5 | 269 | 53.71 | - | - | - |"
    assert (
        quick == "| auto quick | 3 / 1120 | 112.9 | 226 | 77.42 | 190 | 3 min and 0.75 GB | 0.90 |"
    )
    assert "Not run: llm-bip-glu; " in text and "; auto quick; " not in text
    assert "Measured for no row: wikitext2, 60 kB; " in text
    page = tmp_path / "RESULTS.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write_results(LINES, page)
    assert page.read_text() == f"before\n{BEGIN}\n{text}\n{END}\nafter\n"


def test_speed_is_told_beside_the_dense_model_of_the_same_run() -> None:
    def of(tokens: float, size: float) -> dict[str, object]:
        filled = {"prefill": {"median": 8 * tokens}, "decode": {"median": 4 * tokens}}
        each = {f"{name}_median_tokens_per_second": tokens for name in ("prefill", "decode")}
        return {**each, "filled": filled, "peak_memory_bytes": size}

    value = {"models": {"dense": of(600, 6e8), "model": of(750, 5e8)}}
    text = told([*LINES, {"row": "auto quick", "measure": SPEED, "value": value}])
    factor = "(\N{MULTIPLICATION SIGN} 1.25)"
    figures = f"750 {factor} | 750 {factor} | 6,000 {factor} | 3,000 {factor} | 0.50 (0.60)"
    assert f"| auto quick | {figures} |" in text


def test_a_figure_that_is_there_is_not_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(real, "RESULTS", tmp_path / "real.jsonl")
    monkeypatch.setattr(real, "OUT", tmp_path / "out")
    ran: list[str] = []

    def measured(self: real.Bench, row: real.Row, measure: str) -> dict[str, float]:
        ran.append(measure)
        if len(ran) == 2:
            raise KeyboardInterrupt
        return {"value": 1.0}

    monkeypatch.setattr(real.Bench, "_measured", measured)
    monkeypatch.setattr(real.Bench, "_make", lambda *_: None)
    bench, row = real.Bench(tmp_path, tmp_path), rows()[0]
    with pytest.raises(KeyboardInterrupt):
        bench.row(row, MEASURES[:3])
    bench.row(row, MEASURES[:3])
    assert ran == [*MEASURES[:2], *MEASURES[1:3]]
    assert [line["measure"] for line in real.known()] == list(MEASURES[:3])


def test_a_training_that_is_refused_is_told_once_and_measured_never(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(real, "RESULTS", tmp_path / "real.jsonl")
    monkeypatch.setattr(real, "OUT", tmp_path / "out")
    data = tmp_path / "text"
    data.mkdir()
    for name in (real.CALIBRATION, real.JUDGE):
        (data / name).write_text("text")
    ran: list[str] = []

    def timed(command: str, *_: object) -> tuple[str, float]:
        ran.append(command)
        raise Failed("error: recovery refused, nothing is written to OUT: did not fall: 8 to 9")

    monkeypatch.setattr(real, "timed", timed)
    bench = real.Bench(tmp_path, tmp_path)
    [row] = [each for each in rows() if each.name == f"{DENSE}, lora"]
    monkeypatch.setattr(real.Bench, "_tell_of_dense", lambda *_: None)
    for _ in range(2):
        bench.row(row, MEASURES[:2])
    assert ran == ["recover"]
    [line] = real.known()
    assert line["value"] == {"told": "recovery refused: did not fall: 8 to 9"}
    with pytest.raises(Failed, match="no space"):
        real.refusal("error: no space")


def test_a_row_that_is_not_there_is_one_line() -> None:
    with pytest.raises(SystemExit, match="error: no row nothing; rows: dense; "):
        real.main(["--only", "nothing"])


def test_a_change_of_accuracy_is_of_pairs() -> None:
    before = {"piqa": "1100", "boolq": "1111"}
    change, reach = mean_change(before, {"piqa": "1000", "boolq": "1111"})
    assert change == pytest.approx(-0.125)
    # One question of four was lost: a spread of a half, over two tasks.
    assert reach == pytest.approx(1.96 * 0.25 / 2, rel=1e-3)
    assert mean_change(before, before) == (0.0, 0.0)
    with pytest.raises(ValueError, match="answers to"):
        mean_change(before, {"piqa": "1000"})


def test_answers_are_by_the_likelihood_that_a_task_is_read_by() -> None:
    items = [{"choice": 0, "choice_norm": 1, "gold": 1}, {"choice": 2, "choice_norm": 0, "gold": 2}]
    value = {
        "tasks": {"piqa": {"acc_norm": 0.5}, "boolq": {"acc_norm": None}},
        "items": {"tasks": {"piqa": items, "boolq": items}},
    }
    answers = answers_of(value)
    assert answers == {"piqa": "10", "boolq": "01"}
    assert mean_accuracy(answers) == 0.5
    lines = [{"row": row, "measure": "tasks", "value": answers} for row in ("dense", "osscar")]
    assert "| osscar | 50.0 | 50.0 | 50.0 | +0.0 ± 0.0 |" in told(lines)
