"""The parts: each takes a :class:`Bench` and tells what it finds as it goes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.bench import Bench, Findings, Job
from benchmarks.gpu.telling import rate_table, tell_plans, tell_run, tell_scores
from benchmarks.processes import Failed
from benchmarks.tables import gigabytes_text

DTYPES = ("bfloat16", "float32")
CRITERION, RATIO = "llm-bip-glu", "0.5"
AUTO_RATIO = "0.3"


@dataclass(frozen=True)
class Part:
    """What is run, and the most seconds it may take."""

    run: Callable[[Bench, Findings], None]
    seconds: float


def machine_part(bench: Bench, findings: Findings) -> None:
    """The card, the libraries, and what disk and device do at best."""
    scale, told = bench.scale, bench.work / "machine.json"
    sizes = ["--file-bytes", str(scale.file_bytes), "--matrix-size", str(scale.matrix_size)]
    place = ["--device", scale.device, "--folder", str(bench.work), "--json", str(told)]
    bench.run(["benchmarks.gpu.rates", *place, *sizes])
    facts = json.loads(told.read_text(encoding="utf-8"))
    findings.values.update(facts)
    findings.tables.append(rate_table(facts))
    findings.notes += [
        f"{facts['date']}; {facts['driver'] or 'no GPU'}; {facts['processor']}, {facts['cores']} "
        f"cores, {gigabytes_text(facts['memory_bytes'])}; {facts['disk']}",
        f"Python {facts['python']}, PyTorch {facts['torch']}, transformers {facts['transformers']},"
        f" safetensors {facts['safetensors']}; code {facts['code']}",
    ]


def whole_part(bench: Bench, findings: Findings) -> None:
    """A 7B shape scored, pruned and written, in both dtypes, beside its floor."""
    model = bench.checkpoint(bench.scale.whole)
    for dtype in DTYPES:
        job = _scoring_job(bench, "whole", model, dtype, bench.scale.whole_samples)
        tell_run(bench, findings, dtype, bench.prune(job))


def auto_part(bench: Bench, findings: Findings) -> None:
    """``auto`` on four blocks of an 8B shape."""
    model = bench.checkpoint(bench.scale.part)
    job = _auto_job("auto", model, bench.scale.device, bench.scale.part_samples)
    result = bench.prune(job)
    tell_run(bench, findings, "auto", result)
    findings.values["compensation"] = result["compensation"]
    findings.values["widths"] = result["widths"]


def reference_part(bench: Bench, findings: Findings) -> None:
    """``auto`` on the trained models: does the device keep the groups that the CPU keeps?"""
    models, samples = bench.references(findings), bench.scale.reference_samples
    devices = {"device": bench.scale.device, "cpu": "cpu"}
    jobs = [
        _auto_job(f"reference-{name}-{run}", model, device, samples)
        for name, model in models.items()
        for run, device in devices.items()
    ]
    outcomes = bench.side_by_side(jobs)
    pairs = {name: [f"reference-{name}-{run}" for run in devices] for name in models}
    _each_pair(pairs, outcomes, lambda *pair: tell_plans(bench, findings, outcomes, *pair))


def precision_part(bench: Bench, findings: Findings) -> None:
    """Scores in bfloat16 beside those in float32, of the trained models and of the 7B shape."""
    models, samples = bench.references(findings), bench.scale.reference_samples
    jobs = [
        _scoring_job(bench, f"precision-{name}", model, dtype, samples)
        for name, model in models.items()
        for dtype in DTYPES
    ]
    outcomes = bench.side_by_side(jobs)
    pairs = {name: [f"precision-{name}-{dtype}" for dtype in DTYPES] for name in models}
    whole = [f"whole-{dtype}" for dtype in DTYPES]
    if all(bench.statistics(name).is_dir() for name in whole):
        pairs[bench.scale.whole.name] = whole
    else:
        findings.notes.append("the 7B shape: not compared, it was not scored in both dtypes")
    _each_pair(pairs, outcomes, lambda *pair: tell_scores(bench, findings, *pair))


# In this order: what is told first is what a run that is cut off is most wanted for.
PARTS = {
    "machine": Part(machine_part, 90),
    "whole-7b": Part(whole_part, 240),
    "auto-reference": Part(reference_part, 200),
    "precision": Part(precision_part, 90),
    "auto-8b": Part(auto_part, 240),
}


def _scoring_job(bench: Bench, name: str, model: Path, dtype: str, samples: int) -> Job:
    options = ("--ratio", RATIO, "--criterion", CRITERION, "--dtype", dtype)
    place = ("--device", bench.scale.device)
    return Job(f"{name}-{dtype}", model, samples, (*options, *place), scores=True)


def _auto_job(name: str, model: Path, device: str, samples: int) -> Job:
    options = ("--ratio", AUTO_RATIO, "--criterion", "auto", "--device", device)
    return Job(name, model, samples, options)


def _each_pair(
    pairs: dict[str, list[str]],
    outcomes: dict[str, dict[str, Any] | Failed],
    tell: Callable[[str, str, str], None],
) -> None:
    """Tell of every pair whose two runs went well; then raise Failed for those that did not."""
    failures = []
    for name, (first, second) in pairs.items():
        failed = [held for run in (first, second) if isinstance(held := outcomes.get(run), Failed)]
        failures += [f"{name}: {failure}" for failure in failed]
        if not failed:
            tell(name, first, second)
    if failures:
        raise Failed("; ".join(failures))
