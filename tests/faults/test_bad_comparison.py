"""Bad input of ``bipline compare`` and ``bipline sweep``: one line, exit 2, before any work."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from bipline.comparison import engine
from tests.command import Outcome, run
from tests.comparing import Bench
from tests.compression.test_calibrate import prose

Compare = Callable[..., Outcome]


@pytest.fixture
def bench(llama: Path, tmp_path: Path) -> Bench:
    return Bench.of(llama, tmp_path)


@pytest.fixture
def compare(capfd: pytest.CaptureFixture[str], bench: Bench) -> Compare:
    """``bipline compare`` with good options, some of them replaced."""

    def call(**changed: object) -> Outcome:
        return run(capfd, *bench.arguments("out", **changed))

    return call


def test_good_input_is_good(compare: Compare, bench: Bench) -> None:
    """The tests below change one thing each of a command that works."""
    copies = {name: bench.folder / f"copy.{name}" for name in ("json", "csv", "html")}
    outcome = compare(ratios="0.3,0.98", **copies)
    assert outcome.code == 0, outcome
    for name, path in copies.items():
        assert path.read_bytes() == (bench.folder / "out" / f"comparison.{name}").read_bytes()
    value = json.loads(copies["json"].read_text())
    assert value["schema_version"] == 2 and len(value["rows"]) == 4
    assert len(list(csv.reader(copies["csv"].open()))) == 6
    lines = outcome.output.splitlines()
    [dense] = [number for number, line in enumerate(lines) if line.startswith("dense")]
    assert "magnitude, uniform" in outcome.output
    methods = [line.split()[0] for line in lines[dense:] if " 0.3 " in line]
    assert sorted(methods) == ["magnitude,", "wanda-sp,"]
    assert (
        "refused: wanda-sp, uniform, ratio 0.98: ratio 0.98 of the blocks cannot" in outcome.output
    )
    assert "row 1 of 2" in outcome.output


def test_the_same_command_gives_the_same_files(compare: Compare, bench: Bench) -> None:
    assert compare().code == 0
    first = {path.name: path.read_bytes() for path in (bench.folder / "out").glob("comparison.*")}
    assert len(first) == 3
    assert compare().code == 0
    assert first == {
        path.name: path.read_bytes() for path in (bench.folder / "out").glob("comparison.*")
    }


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"criteria": "best"}, ["'best'", "llm-bip-glu"]),
        ({"criteria": "flap:metric"}, ["'flap:metric'", "NAME:KEY=VALUE"]),
        ({"criteria": "flap:metric=best"}, ["flap", "metric=best"]),
        ({"criteria": "flap:colour=red"}, ["flap", "no option 'colour'", "its options: metric"]),
        ({"criteria": "wanda-sp,wanda-sp"}, ["wanda-sp is given twice"]),
        ({"criteria": ","}, ["criteria", "at least one", "a method"]),
        ({"criteria": "auto:ridge=1"}, ["criterion auto has no options"]),
        ({"allocations": "fair"}, ["allocation 'fair'", "uniform"]),
        ({"allocations": "uniform:x=1"}, ["allocation uniform", "no option 'x'"]),
        ({"layouts": "square"}, ["--layouts 'square'", "'uniform' or 'per-layer'"]),
        ({"compensations": "money"}, ["compensation 'money'", "known: none, bias"]),
        ({"compensations": "obs:colour=red"}, ["compensation obs", "no option 'colour'", "ridge"]),
        ({"compensations": "obs:ridge=0"}, ["compensation obs", "ridge=0"]),
        ({"compensations": "none:ridge=1"}, ["compensation none has no options"]),
        ({"method": "flap/uniform/bias/a"}, ["'flap/uniform/bias/a'", "CRITERION/ALLOCATION"]),
        ({"method": "/uniform"}, ["a name is missing"]),
        ({"method": "flap/fair"}, ["allocation 'fair'"]),
        ({"method": "wanda-sp"}, ["wanda-sp/uniform/none is given twice"]),
        ({"method": ["auto", "auto"]}, ["methods", "auto", "given twice"]),
        ({"criteria": None, "method": "auto", "compensations": "obs"}, ["compensations go with"]),
        ({"ratios": "0.2,half"}, ["'0.2,half'", "numbers"]),
        ({"ratios": "0.2,1"}, ["ratio 1", "between 0 and 1"]),
        ({"ratios": "0.98,0.99"}, ["every combination is refused (4)", "ratio 0.98 of the"]),
        ({"ratios": "nan"}, ["--ratios nan", "finite number"]),
        ({"seeds": "0.5"}, ["'0.5'", "whole numbers"]),
        ({"seeds": "1,1"}, ["seeds: 1 is given twice"]),
        ({"ratio_of": "heads"}, ["--ratio-of 'heads'", "'blocks' or 'total'"]),
        ({"text": None}, ["--text NAME=FILE"]),
        ({"text": "novel.txt"}, ["'novel.txt'", "NAME=FILE"]),
        ({"text": "a=gone.txt"}, ["gone.txt", "no such"]),
        ({"calibration": None}, ["--calibration FILE"]),
        ({"calibration": "gone.txt"}, ["gone.txt", "no such"]),
        ({"samples": 10**6}, ["1000000"]),
        ({"samples": 0}, ["samples 0"]),
        ({"seqlen": 257, "samples": 1}, ["seqlen 257", "max_position_embeddings 256"]),
        ({"evaluation_seqlen": 1}, ["--evaluation-seqlen 1"]),
        ({"evaluation_seqlen": 257}, ["257", "max_position_embeddings 256"]),
        ({"evaluation_seqlen": 5000}, ["shorter than one window of 5000"]),
        ({"bos": "maybe"}, ["--bos", "maybe"]),
        ({"dtype": "int8"}, ["--dtype", "int8"]),
        ({"device": "tpu7"}, ["device 'tpu7'"]),
        ({"jobs": 0}, ["jobs 0"]),
        ({"tasks": "gone", "task_data": "."}, ["gone.jsonl", "no such task"]),
        ({"tasks": "a/b", "task_data": "."}, ["--tasks 'a/b'"]),
        ({"limit": 0}, ["--limit 0"]),
        ({"max_memory": "much"}, ["'much'", "2.5GB"]),
        ({"max_memory": "1MB"}, ["tokenising", "MB", "--max-memory"]),
        ({"json": "gone/x.json"}, ["gone/x.json", "folder does not exist"]),
        ({"csv": "gone/x.csv"}, ["gone/x.csv", "folder does not exist"]),
        ({"html": "gone/x.html"}, ["gone/x.html", "folder does not exist"]),
    ],
)
def test_unusable_option(
    compare: Compare, bench: Bench, options: dict[str, object], words: list[str]
) -> None:
    compare(**options).assert_one_line(2, *words)
    assert not (bench.folder / "out").exists()


def test_several_processes_do_not_measure_speed(
    capfd: pytest.CaptureFixture[str], bench: Bench
) -> None:
    outcome = run(capfd, *bench.arguments("out", jobs=2), "--speed")
    outcome.assert_one_line(2, "jobs 2", "one process alone")


def test_where_all_turns_out_to_be_refused_results_say_why(compare: Compare, bench: Bench) -> None:
    outcome = compare(criteria="policy-gradient:tokens=1", ratios="0.2,0.3")
    assert outcome.code == 2, outcome
    words = "every combination is refused (2); policy-gradient:tokens=1, uniform, ratio 0.2"
    assert words in " ".join(outcome.errors.split()), outcome
    rows = json.loads((bench.folder / "out" / "comparison.json").read_text())["rows"]
    assert len(rows) == 2 and all(row["refusal"] for row in rows)


def test_what_else_lies_in_the_folder_stays(compare: Compare, bench: Bench) -> None:
    """Somebody deleted the work of an earlier run, and kept its results."""
    assert compare().code == 0
    shutil.rmtree(bench.folder / "out" / "work")
    compare(samples=10**6).assert_one_line(2, "1000000")
    assert (bench.folder / "out" / "comparison.json").is_file()


def test_unusable_model(capfd: pytest.CaptureFixture[str], bench: Bench) -> None:
    arguments = bench.arguments("out")
    run(capfd, "compare", "nowhere", *arguments[2:]).assert_one_line(2, "nowhere", "no such model")
    twice = ["compare", str(bench.model), *arguments[1:]]
    run(capfd, *twice).assert_one_line(2, "MODEL: one is given twice")


def test_text_that_is_calibrated_on_is_not_measured_on(compare: Compare, bench: Bench) -> None:
    (bench.folder / "one.txt").write_text(prose(1))
    compare().assert_one_line(2, "13-grams stand in the evaluation text")
    assert not (bench.folder / "out").exists()


def test_missing_gpu_is_the_environments_fault(compare: Compare, bench: Bench) -> None:
    compare(device="cuda:99").assert_one_line(3, "'cuda:99' was asked for")
    assert not (bench.folder / "out").exists()


def test_a_full_disk_is_the_environments_fault(
    compare: Compare, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = OSError(28, "No space left on device", "/somewhere")

    def fail(*_: object, **__: object) -> None:
        raise full

    with monkeypatch.context() as patched:
        patched.setattr("bipline.comparison.rows.prune", fail)
        compare().assert_one_line(3, "no space left")
    assert compare().code == 0, "what was finished is gone on from"


def test_a_model_that_changes_while_it_is_compared(
    capfd: pytest.CaptureFixture[str],
    bench: Bench,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = Path(shutil.copytree(bench.model, tmp_path / "model"))
    measure = engine._Model._measure

    def change_then_measure(self: object, *arguments: object) -> None:
        weights = model / "model.safetensors"
        data = bytearray(weights.read_bytes())
        data[-1] ^= 1
        weights.write_bytes(bytes(data))
        measure(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(engine._Model, "_measure", change_then_measure)
    arguments = ["compare", str(model), *bench.arguments("out")[2:]]
    run(capfd, *arguments).assert_one_line(1, "its weights changed while the run was going on")


@pytest.fixture
def sweep(capfd: pytest.CaptureFixture[str], bench: Bench) -> Callable[..., Outcome]:
    """``bipline sweep --dry-run`` of a good configuration with overrides."""

    def call(*overrides: str) -> Outcome:
        config = {
            "model": str(bench.model),
            "texts": {"calibration": str(bench.folder / "calibration.txt"), **bench.texts},
            "state": str(bench.folder / "state"),
            "grid": {"criteria": ["wanda-sp"], "ratios": [0.3]},
            "evaluate": {"texts": ["one"]},
            "select": {"minimise": "perplexity.one"},
        }
        path = bench.folder / "sweep.yaml"
        path.write_text(yaml.safe_dump(config))
        flags = [part for override in overrides for part in ("--set", override)]
        return run(capfd, "sweep", path, "--dry-run", *flags)

    return call


def test_a_dry_run_tells_the_work_and_does_none(
    sweep: Callable[..., Outcome], bench: Bench
) -> None:
    outcome = sweep("grid.ratios=[0.3, 0.98]", "grid.seeds=[0, 1]")
    assert outcome.code == 0, outcome
    assert "2 passes" in outcome.output and "4 rows" in outcome.output
    assert "refused    wanda-sp, uniform, ratio 0.98, seed 0: ratio 0.98" in outcome.output
    assert not (bench.folder / "state").exists()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("grid.criterion=x", ["'grid.criterion'", "did you mean 'criteria'"]),
        ("grid.criteria=[best]", ["'best'", "llm-bip-glu"]),
        ("grid.criteria=[]", ["criteria", "at least one", "a method"]),
        ("grid.methods=[wanda-sp]", ["wanda-sp/uniform/none is given twice"]),
        ("grid.methods=[a/b/c/d]", ["'a/b/c/d'", "CRITERION/ALLOCATION/COMPENSATION"]),
        ('grid.criteria=["flap:"]', ["'flap:'", "NAME:KEY=VALUE"]),
        ("grid.compensations=[money]", ["compensation 'money'"]),
        ("grid.layouts=[square]", ["grid.layouts.0", "square"]),
        ("grid.ratios=[1.5]", ["ratio 1.5", "between 0 and 1"]),
        ("grid.seeds=[0, 0]", ["seeds: 0 is given twice"]),
        ("evaluate.texts=[three]", ["text 'three'"]),
        ("evaluate.tasks=[gone]", ["task 'gone'", "not listed under tasks"]),
        ("tasks={q: /nowhere.jsonl}", ["/nowhere.jsonl", "no such"]),
        ("select.maximise=parameters", ["one of minimise and maximise"]),
        ("select={minimise: parameters, at_least: {acc.q: 1}}", ["'acc.q' is no figure"]),
        ("select.minimise=speed", ["'speed' is no figure", "perplexity.one"]),
        ('select.at_most={"perplexity.two": 3}', ["'perplexity.two' is no figure"]),
        ("compute.device=tpu7", ["device 'tpu7'"]),
        (
            "grid.ratios=[0.98]",
            ["every combination is refused (1); wanda-sp, uniform", "ratio 0.98 of the"],
        ),
        ("model=/nowhere", ["/nowhere", "no such"]),
        ("texts.one=/nowhere.txt", ["/nowhere.txt", "no such"]),
    ],
)
def test_unusable_sweep(
    sweep: Callable[..., Outcome], bench: Bench, override: str, words: list[str]
) -> None:
    sweep(override).assert_one_line(2, *words)
    assert not (bench.folder / "state").exists()


def test_schemas_are_told_apart(capfd: pytest.CaptureFixture[str]) -> None:
    titles = {
        name: json.loads(run(capfd, "config", "schema", *[name] * bool(name)).output)["title"]
        for name in ("", "compress", "sweep")
    }
    assert titles == {
        "": "CompressSettings", "compress": "CompressSettings", "sweep": "SweepSettings"
    }  # fmt: skip
    run(capfd, "config", "schema", "demo").assert_one_line(2, "'demo'", "compress, sweep")
