"""Comparisons: rows are what prune and evaluate give, nothing is computed twice, refusals tell."""

from __future__ import annotations

import json
import multiprocessing
import statistics
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from bipline.base.errors import EnvironmentFailure, InvalidInput, Refused
from bipline.base.progress import listening
from bipline.comparison import pool, rows
from bipline.comparison.inputs import named
from bipline.comparison.spread import Spread, ranked, repeated
from bipline.compression import score
from bipline.settings.line import ComputeSettings
from bipline.settings.protocol import Protocol
from bipline.stages.evaluate import evaluate_dense
from bipline.stages.stage import Context, Stage
from bipline.storage.local_store import LocalStore
from bipline.storage.locks import locked
from bipline.storage.manifest import verify_directory
from bipline.storage.store import Handle
from bipline.values.combination import Choice
from bipline.values.comparison import Comparison
from tests.command import contents, run
from tests.comparing import SAMPLES, SEQLEN, Bench, figures


@pytest.fixture
def bench(llama: Path, tmp_path: Path) -> Bench:
    return Bench.of(llama, tmp_path)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What ran windows: ``forward`` or ``backward`` for every pass that scores."""
    seen: list[str] = []
    forward, backward = score.ForwardPass.run, score.gradient_sums

    def run_forward(self: Any, finish: Any) -> Any:
        seen.append("forward")
        return forward(self, finish)

    def run_backward(*arguments: Any) -> Any:
        seen.append("backward")
        return backward(*arguments)

    monkeypatch.setattr(score.ForwardPass, "run", run_forward)
    monkeypatch.setattr(score, "gradient_sums", run_backward)
    yield seen


METHODS = [
    ("wanda-sp", {}, "uniform", {}, "uniform"),
    ("flap", {"metric": "ifv"}, "standardized", {}, "per-layer"),
    ("llm-bip-glu", {}, "error-aware", {"samples": "2", "grid": "5"}, "per-layer"),
    ("block-influence", {}, "depth", {}, "uniform"),
    ("random", {}, "uniform", {}, "uniform"),
    ("hywia", {}, "uniform", {}, "uniform"),
]


@pytest.mark.parametrize(
    ("criterion", "options", "allocation", "allocation_options", "layout"), METHODS
)
def test_a_row_is_what_prune_and_evaluate_give(
    bench: Bench,
    capfd: pytest.CaptureFixture[str],
    criterion: str,
    options: dict[str, str],
    allocation: str,
    allocation_options: dict[str, str],
    layout: str,
) -> None:
    named = [
        Choice(name=criterion, options=options),
        Choice(name=allocation, options=allocation_options),
    ]
    compared = bench.compare(
        "out", criteria=named[0].label, allocations=named[1].label, layouts=(layout,), seeds=(3,)
    )
    [row] = compared.rows
    assert row.measured, row.refusal
    folder = bench.folder
    given = [("--criterion-option", options), ("--allocation-option", allocation_options)]
    more = [part for flag, held in given for k, v in held.items() for part in (flag, f"{k}={v}")]
    pruned = run(
        capfd, "prune", bench.model, "--out", folder / "pruned", "--ratio", "0.3", "--criterion",
        criterion, "--allocation", allocation, "--layout", layout, "--seed", "3", "--calibration",
        folder / "calibration.txt", "--samples", str(SAMPLES), "--seqlen", str(SEQLEN),
        "--device", "cpu", "--state", folder / "state", "--json", folder / "p.json", *more,
    )  # fmt: skip
    assert pruned.code == 0, pruned
    texts = [part for name, path in bench.texts.items() for part in ("--text", f"{name}={path}")]
    measured = run(
        capfd, "evaluate", folder / "pruned", "--baseline", bench.model, "--seqlen", str(SEQLEN),
        "--device", "cpu", "--state", folder / "state", "--json", folder / "e.json", *texts,
    )  # fmt: skip
    assert measured.code == 0, measured
    told, record = (json.loads((folder / name).read_text()) for name in ("p.json", "e.json"))
    found = row.measured.model_dump(mode="json")
    assert found["plan_digest"] == told["plan_digest"]
    assert found["parameters"] == told["parameters"]
    assert [list(pair) for pair in row.measured.widths] == told["widths"]
    assert found["ratio"] == {k: v for k, v in told["ratio"].items() if k != "reached"}
    for name in ("tensor_digest", "file_bytes", "perplexity"):
        assert found[name] == record[name], name
    for name, change in row.measured.change.items():
        dense = record["baseline"]["perplexity"][name]
        assert change.nll == record["perplexity"][name]["nll"] - dense["nll"]
        assert change.perplexity == record["perplexity"][name]["value"] - dense["value"]
    assert (
        compared.models[bench.model.name].record.perplexity["one"].value
        == (record["baseline"]["perplexity"]["one"]["value"])
    )


def test_statistics_are_taken_once_and_shared(bench: Bench, passes: list[str]) -> None:
    criteria = "wanda-sp,llm-bip,llm-bip-glu,flap,flap:metric=ifv,hywia,llm-pruner,magnitude"
    compared = bench.compare("out", criteria=criteria, ratios=(0.2, 0.4))
    assert all(row.measured for row in compared.rows)
    # llm-bip-glu's sums serve wanda-sp and llm-bip, flap's serve its other metric, and one
    # backward pass serves all criteria of gradients.
    assert sorted(passes) == ["backward", "forward", "forward"]
    sources = {row.combination.criterion.label: row.cost.sums_from for row in compared.rows}
    assert sources["llm-bip-glu"] is None and sources["flap"] is None
    assert sources["wanda-sp"] == sources["llm-bip"] == "llm-bip-glu"
    assert sources["flap:metric=ifv"] == "flap"
    assert {sources["hywia"], sources["llm-pruner"]} in ({None, "hywia"}, {None, "llm-pruner"})


def test_shared_sums_give_the_rows_of_a_pass_of_ones_own(bench: Bench) -> None:
    together = bench.compare("together", criteria="llm-bip-glu,wanda-sp,hywia,llm-pruner")
    for row in together.rows:
        [alone] = bench.compare(
            row.combination.criterion.name, criteria=row.combination.criterion.name
        ).rows
        assert alone.measured == row.measured


def test_a_second_run_computes_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    axes: dict[str, Any] = {"criteria": "wanda-sp,magnitude", "seeds": (0, 1)}
    first = bench.compare("out", **axes)
    monkeypatch.setattr(Stage, "_produced", Mock(side_effect=AssertionError("computed again")))
    assert bench.compare("out", **axes) == first


def test_a_larger_grid_computes_what_is_new_in_it(bench: Bench, passes: list[str]) -> None:
    [row] = bench.compare("out").rows
    larger = bench.compare("out", criteria="wanda-sp,llm-bip", ratios=(0.3, 0.4))
    assert passes == ["forward"]
    assert larger.rows[0] == row
    assert larger.rows[2].cost.sums_from == "wanda-sp"


def test_an_interrupted_run_is_gone_on_from(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    axes: dict[str, Any] = {"criteria": "wanda-sp,llm-bip-glu", "ratios": (0.2, 0.3, 0.4)}
    whole = bench.compare("whole", **axes)
    evaluate, calls = rows.evaluate, []

    def interrupted(context: Context, model: Handle, *rest: Any) -> Any:
        calls.append(model.digest)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return evaluate(context, model, *rest)

    monkeypatch.setattr(rows, "evaluate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bench.compare("out", **axes)
    resumed = bench.compare("out", **axes)
    assert figures(resumed) == figures(whole)
    # The one that was interrupted ran twice, the two before it once.
    assert len(calls) == len(set(calls)) + 1 == 7


def test_refused_combinations_are_rows_with_their_reason(bench: Bench) -> None:
    compared = bench.compare(
        "out", criteria="wanda-sp,saap:fluctuation=1", allocations="uniform,depth,log-increase",
        ratios=(0.3, 0.98),
    )  # fmt: skip
    reasons = {
        (r.combination.criterion.name, r.combination.allocation.name, r.combination.ratio): (
            r.refusal or ""
        )
        for r in compared.rows
    }
    assert len(reasons) == 12
    assert "cannot be reached" in reasons["wanda-sp", "uniform", 0.98]
    assert "depth drops whole blocks" in reasons["wanda-sp", "depth", 0.3]
    assert "per-layer" in reasons["wanda-sp", "log-increase", 0.3]
    assert not reasons["wanda-sp", "uniform", 0.3]
    assert not reasons["saap", "uniform", 0.3], "20 windows are two chunks"


def test_a_refused_criterion_refuses_its_rows_alone(bench: Bench) -> None:
    criteria = "wanda-sp,policy-gradient:tokens=1"
    compared = bench.compare("out", criteria=criteria, ratios=(0.3, 0.4))
    assert [bool(row.measured) for row in compared.rows] == [True, True, False, False]
    for row in compared.rows[2:]:
        assert row.refusal and "tokens=1" in row.refusal
    again = bench.compare("out", criteria=criteria, ratios=(0.3, 0.4))
    assert figures(again) == figures(compared)


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_two_processes_give_the_rows_of_one(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    axes: dict[str, Any] = {
        "criteria": "wanda-sp,llm-bip-glu,saap", "seeds": (0, 1), "ratios": (0.3, 0.98),
        "methods": ("wanda-sp//obs",),
    }  # fmt: skip
    assert figures(bench.compare("one", **axes)) == figures(bench.compare("two", jobs=2, **axes))


def test_seeds_draw_their_windows_and_their_spread_is_told(bench: Bench) -> None:
    compared = bench.compare("out", criteria="random", seeds=(0, 1, 2))
    values = [row.measured.perplexity["one"].value for row in compared.rows if row.measured]
    assert len(set(values)) == 3
    [each] = repeated(compared.rows)
    spread = each.over("perplexity.one")
    assert spread == Spread(
        mean=statistics.fmean(values), least=min(values), most=max(values),
        deviation=statistics.stdev(values),
    )  # fmt: skip
    assert Spread.of([2.0]) == Spread(mean=2.0, least=2.0, most=2.0, deviation=None)


def test_combinations_are_ranked_by_ratio_and_perplexity(bench: Bench) -> None:
    compared = bench.compare(
        "out", criteria="wanda-sp,random,magnitude", ratios=(0.4, 0.2, 0.98), seeds=(0, 1)
    )
    found = ranked(compared, bench.model.name)
    assert [each.combination.ratio for each in found] == [0.2] * 3 + [0.4] * 3 + [0.98] * 3
    means = [each.over("perplexity.one") for each in found[:3]]
    assert means == sorted(means, key=lambda spread: spread.mean if spread else 0)


def test_kept_models_are_those_that_were_measured(bench: Bench) -> None:
    bench.compare("out", ratios=(0.3,))
    assert not (bench.folder / "out" / "models").exists()
    compared = bench.compare("out", keep=True, ratios=(0.3, 0.98))
    row, refused = compared.rows
    assert row.directory and row.measured and refused.directory is None
    place = bench.folder / "out" / row.directory
    assert verify_directory(place).info["parameters"] == row.measured.parameters.after
    assert [path.name for path in place.parent.iterdir()] == [place.name]


def test_nothing_half_done_is_left(bench: Bench) -> None:
    bench.compare("out", criteria="wanda-sp,magnitude")
    work = bench.folder / "out" / "work"
    assert sorted(path.name for path in work.iterdir()) == ["calibrate", "evaluate", "row", "score"]
    assert not [path for path in work.rglob("*") if path.name.endswith((".work", ".partial"))]


def test_another_process_in_the_folder_is_refused(bench: Bench) -> None:
    bench.compare("out")
    with (
        locked(bench.folder / "out", "held"),
        pytest.raises(InvalidInput, match="another process is comparing"),
    ):
        bench.compare("out")


def test_a_folder_of_something_else_is_left_alone(bench: Bench) -> None:
    (bench.folder / "out").mkdir()
    (bench.folder / "out" / "precious").write_text("keep me")
    with pytest.raises(InvalidInput, match="holds files that are no comparison"):
        bench.compare("out")
    assert contents(bench.folder / "out") == {"precious": b"keep me"}


def test_a_stored_row_that_was_changed_is_refused(bench: Bench) -> None:
    bench.compare("out")
    [value] = (bench.folder / "out" / "work" / "row").glob("*/value.json")
    value.chmod(0o644)
    value.write_text(value.read_text().replace('"refusal": null', '"refusal": "no"'))
    with pytest.raises(Refused, match=r"value\.json does not match its sha256"):
        bench.compare("out")


def test_a_worker_that_is_gone_is_the_environments_fault(bench: Bench) -> None:
    with (
        pytest.raises(EnvironmentFailure, match="a worker process is gone"),
        pool.performing(2) as perform,
    ):
        given = bench.inputs().models[bench.model.name]
        compute, store = ComputeSettings(device="cpu"), LocalStore(bench.folder)
        task = pool.Task(evaluate_dense, (given, Protocol()), store, compute)
        waiting = perform({"dense": task})
        killer = threading.Thread(target=kill_children)
        killer.start()
        list(waiting)
    killer.join()


def kill_children() -> None:
    """Kill the workers as soon as there are some."""
    while not (workers := multiprocessing.active_children()):
        time.sleep(0.01)
    for worker in workers:
        worker.kill()


def test_memory_decides_how_many_processes_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(pool, "available_bytes", lambda: 10_000)
    monkeypatch.setattr(pool, "note", told.append)
    assert pool.processes_for(1, 99_000, None) == (1, None)
    assert pool.processes_for(3, 3_000, None) == (3, 3_333)
    assert not told
    assert pool.processes_for(4, 3_000, None) == (3, 3_333)
    assert pool.processes_for(4, 3_000, 6_500) == (2, 3_250)
    assert pool.processes_for(4, 30_000, 6_500) == (1, 6_500)
    assert len(told) == 3 and "3 of 4 processes" in told[0]


def test_progress_counts_rows_and_estimates_the_time(bench: Bench) -> None:
    class Screen(Mock):
        """A listener that remembers its notes."""

    screen = Screen()
    with listening(screen):
        bench.compare("out", criteria="wanda-sp,magnitude", ratios=(0.3, 0.98))
    notes = [call.args[0] for call in screen.note.call_args_list]
    assert any(note.startswith("row 1 of 2: wanda-sp, uniform, ratio 0.3") for note in notes)
    assert any(note.startswith("row 2 of 2: magnitude, uniform, ratio 0.3") for note in notes)


def test_models_called_the_same_are_told_apart() -> None:
    assert named("MODEL", ["a/llama", "b/llama", "c/other"]) == {
        "a/llama": "a/llama", "b/llama": "b/llama", "other": "c/other",
    }  # fmt: skip
    with pytest.raises(InvalidInput, match="given twice"):
        named("MODEL", ["a/llama", "a/llama"])


def test_a_comparison_survives_its_json(bench: Bench) -> None:
    compared = bench.compare("out", ratios=(0.3, 0.98))
    assert Comparison.model_validate_json(compared.model_dump_json()) == compared
