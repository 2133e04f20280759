"""The script for a GPU, rehearsed on the CPU: every part runs, fails alone, and is told in full."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from benchmarks.gpu.agreement import KINDS, counts, differing_groups, rank_agreement
from benchmarks.gpu.bench import Bench, Findings, Job
from benchmarks.gpu.bundle import PACKAGES
from benchmarks.gpu.main import run_parts
from benchmarks.gpu.parts import DTYPES, PARTS, Part, reference_part
from benchmarks.gpu.results import FAILED, PASSED, UNFINISHED, Results
from benchmarks.gpu.scale import FULL, REHEARSAL, ROOT
from benchmarks.gpu.telling import FIELDS
from benchmarks.processes import Failed


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(REHEARSAL, tmp_path, tmp_path / "gpu.log", time.monotonic() + 60)


@pytest.fixture
def results(tmp_path: Path) -> Results:
    return Results(tmp_path, tmp_path / "results", "rehearsal", "code")


def rehearse(folder: Path, *options: str) -> str:
    command = [sys.executable, "-m", "benchmarks.gpu.main", "--rehearse", *options]
    places = ["--out", str(folder / "out"), "--work", str(folder / "work")]
    return subprocess.run(
        [*command, *places], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout


@pytest.mark.slow
def test_rehearsal_tells_every_part_and_goes_on_from_what_passed(tmp_path: Path) -> None:
    rehearse(tmp_path)
    told = json.loads((tmp_path / "out" / "gpu.json").read_text(encoding="utf-8"))
    assert told["passed"] and list(told["parts"]) == list(PARTS)
    values = {name: part["values"] for name, part in told["parts"].items()}
    assert_machine(values["machine"])
    for run in (*(values["whole-7b"][dtype] for dtype in DTYPES), values["auto-8b"]["auto"]):
        assert_run(run)
    alone = dict.fromkeys(KINDS, 0)
    reference = values["auto-reference"]["stand-in"]
    assert reference["same_plan_digest"] and reference["same_model_digest"]
    assert reference["same_groups"] and reference["differing_counts"] == alone
    for compared in ("stand-in", REHEARSAL.whole.name):
        ranks = values["precision"][compared]["rank_correlation_by_block"]
        assert min(ranks["ffn_channels"]) > 0.99
    page = (tmp_path / "out" / "gpu.md").read_text(encoding="utf-8")
    for name in PARTS:
        assert f"| {name} | passed |" in page and f"## {name}\n" in page

    again = rehearse(tmp_path, "--only", "precision,machine")
    assert "machine: passed before" in again and "precision: passed before" in again


def assert_machine(facts: dict[str, Any]) -> None:
    for rate in ("read", "write", "hash", "copy"):
        assert facts[f"{rate}_bytes_per_second"] > 0
    assert set(facts["operations_per_second"]) == {"bfloat16", "float32", "float64"}
    assert facts["torch"] and facts["transformers"] and facts["processor"]


def assert_run(run: dict[str, Any]) -> None:
    assert set(FIELDS) <= set(run)
    assert {"score", "allocate", "prune"} <= set(run["stage_seconds"])
    assert 0 < run["total_seconds"] < run["process_seconds"]
    assert run["peak_anonymous_bytes"] > 0 and run["disk_floor_seconds"] > 0
    assert 0 < run["written_bytes"] < run["read_bytes"]


def test_a_part_that_fails_is_told_and_the_others_go_on(bench: Bench, results: Results) -> None:
    def fails(_: Bench, findings: Findings) -> None:
        findings.values["found"] = 1
        raise Failed("first line\nand | the second")

    def breaks(_: Bench, findings: Findings) -> None:
        raise KeyError("gone")

    def passes(_: Bench, findings: Findings) -> None:
        findings.notes.append("all well")
        told = json.loads((results.out / "gpu.json").read_text(encoding="utf-8"))
        assert told["parts"]["passes"]["status"] == UNFINISHED

    functions = {"fails": fails, "breaks": breaks, "passes": passes}
    run_parts({name: Part(run, 9) for name, run in functions.items()}, bench, results)
    told = json.loads((results.out / "gpu.json").read_text(encoding="utf-8"))
    parts = told["parts"]
    assert not told["passed"]
    assert [parts[name]["status"] for name in functions] == [FAILED, FAILED, PASSED]
    assert parts["fails"]["reason"] == "first line and / the second"
    assert parts["fails"]["values"] == {"found": 1}
    assert parts["breaks"]["reason"] == "KeyError: 'gone'"
    assert "all well" in (results.out / "gpu.md").read_text(encoding="utf-8")


def test_only_what_passed_by_the_same_code_is_gone_on_from(bench: Bench, results: Results) -> None:
    runs: list[str] = []
    fails = [True]

    def run(_: Bench, findings: Findings) -> None:
        runs.append("run")
        if fails:
            raise Failed(str(fails.pop()))

    for _ in range(3):
        run_parts({"part": Part(run, 9)}, bench, results)
    assert len(runs) == 2
    run_parts({"part": Part(run, 9)}, bench, replace(results, code="another", outcomes={}))
    assert len(runs) == 3


def test_a_run_that_takes_too_long_is_stopped_with_its_last_words(bench: Bench) -> None:
    bench.ends = time.monotonic() + 2
    waits = "import time; print('block 2 of 4', flush=True); time.sleep(60)"
    with pytest.raises(Failed, match=r"stopped after 2 s; timeit said: block 2 of 4"):
        bench.run(["timeit", "-n1", "-r1", waits])
    with pytest.raises(Failed, match="no time left for timeit"):
        bench.run(["timeit", "-n1", "-r1", "0"])


class Planted(Bench):
    """A bench whose runs write plans of two blocks; the device drops another channel in one."""

    def prune(self, job: Job, threads: int | None = None) -> dict[str, Any]:
        if job.name == "reference-broken-device":
            raise Failed("out of memory")
        channels = [0, 2] if job.name == "reference-planted-device" else [0, 1]
        plan = self.plan(job.name)
        plan.parent.mkdir(parents=True)
        blocks = [[0, 3], channels]
        kept = [{"attention_groups": [1], "ffn_channels": channels} for channels in blocks]
        plan.write_text(json.dumps({"blocks": kept}), encoding="utf-8")
        seconds = {"total": 1.0, "stage": {}}
        digest = str(channels)
        return {"plan_digest": digest, "digest": digest, "seconds": seconds, "peak_device_bytes": 5}


def test_a_planted_difference_between_plans_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = {"planted": tmp_path, "same": tmp_path, "broken": tmp_path, "missing": None}
    monkeypatch.setattr("benchmarks.gpu.bench.trained_models", lambda: models)
    findings = Findings()
    with pytest.raises(Failed, match=r"^broken: out of memory$"):
        reference_part(Planted(FULL, tmp_path, tmp_path / "log", time.monotonic() + 9), findings)
    only = {"only_first": [2], "only_second": [1]}
    assert findings.values["planted"]["differing"] == [{"block": 1, "ffn_channels": only}]
    assert findings.values["planted"]["differing_counts"] == {KINDS[0]: 0, KINDS[1]: 2}
    assert not findings.values["planted"]["same_plan_digest"]
    assert findings.values["same"]["same_groups"] and findings.values["missing"] == ["missing"]
    assert "| 1 | ffn_channels | 1 | 1 |" in findings.section.markdown()


def test_plans_of_unequal_length_are_not_compared(tmp_path: Path) -> None:
    block = {"attention_groups": [0], "ffn_channels": [0]}
    for name, blocks in (("one", [block]), ("two", [block, block])):
        (tmp_path / name).write_text(json.dumps({"blocks": blocks}), encoding="utf-8")
    with pytest.raises(ValueError):
        differing_groups(tmp_path / "one", tmp_path / "two")
    assert counts(differing_groups(tmp_path / "one", tmp_path / "one")) == dict.fromkeys(KINDS, 0)


def test_ranks_agree_where_the_order_does(tmp_path: Path) -> None:
    rising = np.arange(5, dtype=np.float64)
    cases = {"first": (rising, rising, rising), "second": (rising**3, -rising, rising * 0)}
    for name, blocks in cases.items():
        (tmp_path / name).mkdir()
        held = {f"{n}.{kind}": scores for n, scores in enumerate(blocks) for kind in KINDS}
        save_file(held, tmp_path / name / "scores.safetensors")
    for ranks in rank_agreement(tmp_path / "first", tmp_path / "second").values():
        assert ranks == [pytest.approx(1), pytest.approx(-1), None]


def test_wheels_are_pinned() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {re.sub("[_.]", "-", line.split("==")[0]).lower() for line in lines if "==" in line}
    assert set(PACKAGES) <= pinned


def test_without_wheels_the_script_says_how_to_make_them(tmp_path: Path) -> None:
    script = tmp_path / "benchmarks" / "gpu" / "run.sh"
    script.parent.mkdir(parents=True)
    script.write_bytes((ROOT / "benchmarks" / "gpu" / "run.sh").read_bytes())
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S -E "$@"\n', encoding="utf-8")
    bare.chmod(0o755)
    ended = subprocess.run(
        ["bash", script, tmp_path / "out"], env={"PYTHON": str(bare), "PATH": "/usr/bin:/bin"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert ended.returncode == 3
    assert "python -m benchmarks.gpu.bundle" in ended.stderr
