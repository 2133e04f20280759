"""The parts: each takes a :class:`Bench` and tells what it finds as it goes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.agreement import KINDS, counts, differing_groups, kept_groups, rank_agreement
from benchmarks.gpu.bench import Bench, Findings, Job
from benchmarks.running import Failed, forget_model
from benchmarks.tables import NOTHING, Table, gigabytes_text, seconds_text

DTYPES = ("bfloat16", "float32")
CRITERION, RATIO = "llm-bip-glu", "0.5"
AUTO_RATIO = "0.3"
# What is kept of bipline's own JSON.
FIELDS = (
    "command", "process_seconds", "floor_seconds", "floor_seconds_by_stage", "peak_device_bytes",
    "peak_anonymous_bytes", "peak_rss_bytes", "ratio", "digest", "plan_digest",
)  # fmt: skip


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
    findings.tables.append(_rate_table(facts))
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
        forget_model(model)
        _tell_run(findings, dtype, bench.prune(job))
        shutil.rmtree(bench.work / job.name, ignore_errors=True)


def auto_part(bench: Bench, findings: Findings) -> None:
    """``auto`` on four blocks of an 8B shape."""
    model = bench.checkpoint(bench.scale.part)
    options = ("--ratio", AUTO_RATIO, "--criterion", "auto", "--device", bench.scale.device)
    result = bench.prune(Job("auto/part", model, bench.scale.part_samples, options))
    _tell_run(findings, "auto", result)
    findings.values["compensation"] = result["compensation"]
    findings.values["widths"] = result["widths"]


def reference_part(bench: Bench, findings: Findings) -> None:
    """``auto`` on the trained models: does the device keep the groups that the CPU keeps?"""
    models = bench.references(findings)
    devices = {"device": bench.scale.device, "cpu": "cpu"}
    jobs = [
        _auto_job(bench, f"reference/{name}-{run}", model, device)
        for name, model in models.items()
        for run, device in devices.items()
    ]
    outcomes = bench.side_by_side(jobs)
    pairs = {name: [f"reference/{name}-{run}" for run in devices] for name in models}
    _each_pair(pairs, outcomes, lambda *pair: _tell_plans(bench, findings, outcomes, *pair))


def precision_part(bench: Bench, findings: Findings) -> None:
    """Scores in bfloat16 beside those in float32, of the trained models and of the 7B shape."""
    models, samples = bench.references(findings), bench.scale.reference_samples
    jobs = [
        _scoring_job(bench, f"precision/{name}", model, dtype, samples)
        for name, model in models.items()
        for dtype in DTYPES
    ]
    outcomes = bench.side_by_side(jobs)
    pairs = {name: [f"precision/{name}-{dtype}" for dtype in DTYPES] for name in models}
    whole = [f"whole-{dtype}" for dtype in DTYPES]
    if all(bench.statistics(name).is_dir() for name in whole):
        pairs[bench.scale.whole.name] = whole
    else:
        findings.notes.append("the 7B shape: not compared, it was not scored in both dtypes")
    _each_pair(pairs, outcomes, lambda *pair: _tell_scores(bench, findings, *pair))


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
    name = f"{name}-{dtype}"
    place = ("--device", bench.scale.device, "--statistics", bench.statistics(name))
    return Job(name, model, samples, (*options, *place))


def _auto_job(bench: Bench, name: str, model: Path, device: str) -> Job:
    options = ("--ratio", AUTO_RATIO, "--criterion", "auto", "--device", device)
    return Job(name, model, bench.scale.reference_samples, options)


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


def _tell_run(findings: Findings, name: str, result: dict[str, Any]) -> None:
    """One run of ``bipline prune``: seconds beside floors, and peak memory."""
    values = {field: result[field] for field in FIELDS}
    floor, total = result["floor_seconds"], result["seconds"]["total"]
    values |= {
        "stage_seconds": result["seconds"]["stage"],
        "total_seconds": total,
        "total_over_floor": total / floor if floor else None,
        "rates": result.get("rates", {}),
    }
    findings.values[name] = values
    findings.tables.append(_stage_table(values))
    findings.notes.append(
        f"{name}: peak memory of the device {gigabytes_text(values['peak_device_bytes'])}, "
        f"anonymous {gigabytes_text(values['peak_anonymous_bytes'])}, "
        f"resident {gigabytes_text(values['peak_rss_bytes'])}"
    )


def _tell_plans(
    bench: Bench, findings: Findings, outcomes: dict[str, Any], name: str, first: str, second: str
) -> None:
    """Whether two runs keep the same groups; ``only_first`` are the device's, else the CPU's."""
    results, plans = (outcomes[first], outcomes[second]), (bench.plan(first), bench.plan(second))
    differing = differing_groups(*plans)
    findings.values[name] = {
        "same_groups": not differing,
        "same_plan_digest": results[0]["plan_digest"] == results[1]["plan_digest"],
        "same_model_digest": results[0]["digest"] == results[1]["digest"],
        "differing": differing,
        "differing_counts": counts(differing),
        "kept_by_cpu": kept_groups(plans[1]),
        "seconds": [result["seconds"]["total"] for result in results],
        "peak_device_bytes": results[0]["peak_device_bytes"],
    }
    findings.tables.append(_difference_table(f"{name}: groups that only one keeps", differing))
    verdict = "differ from" if differing else "are"
    findings.notes.append(
        f"{name}: the groups that the device keeps {verdict} those that the CPU keeps; "
        + _counted(counts(differing), kept_groups(plans[1]))
    )


def _tell_scores(bench: Bench, findings: Findings, name: str, first: str, second: str) -> None:
    """How far two runs' scores agree: ranks in every block, and the groups that they keep."""
    ranks = rank_agreement(bench.statistics(first), bench.statistics(second))
    differing = differing_groups(bench.plan(first), bench.plan(second))
    findings.values[name] = {
        "rank_correlation_by_block": ranks,
        "differing": differing,
        "differing_counts": counts(differing),
        "kept_in_float32": kept_groups(bench.plan(second)),
    }
    findings.tables.append(_rank_table(name, ranks, differing))
    counted = _counted(counts(differing), kept_groups(bench.plan(second)))
    findings.notes.append(f"{name}, bfloat16 against float32: {counted}")


def _stage_table(values: dict[str, Any]) -> Table:
    floors = values["floor_seconds_by_stage"]
    rows = [
        _stage_row(stage, seconds, floors.get(stage))
        for stage, seconds in values["stage_seconds"].items()
    ]
    rows.append(_stage_row("all stages", values["total_seconds"], values["floor_seconds"]))
    rows.append(_stage_row("whole process", values["process_seconds"], None))
    return Table(f"`{values['command']}`", ("stage", "s", "floor, s", "ratio"), (*rows,))


def _stage_row(stage: str, seconds: float, floor: float | None) -> tuple[str, ...]:
    beside = (seconds_text(floor), f"{seconds / floor:.2f}") if floor else (NOTHING, NOTHING)
    return (stage, seconds_text(seconds), *beside)


def _rate_table(facts: dict[str, Any]) -> Table:
    names = {"read": "disk, read", "write": "disk, write", "hash": "SHA-256", "copy": "to device"}
    rows = [
        (shown, f"{gigabytes_text(facts[f'{name}_bytes_per_second'])}/s")
        for name, shown in names.items()
    ]
    products = facts["operations_per_second"].items()
    rows += [(f"product, {dtype}", f"{rate / 1e12:,.2f} TFLOP/s") for dtype, rate in products]
    return Table(f"rates, device {facts['device']}", ("", "rate"), (*rows,))


def _difference_table(title: str, differing: list[dict[str, Any]]) -> Table:
    rows = [
        (f"{block['block']}", kind, *(f"{len(block[kind][side])}" for side in block[kind]))
        for block in differing
        for kind in KINDS
        if kind in block
    ]
    columns = ("block", "kind", "device alone", "CPU alone")
    return Table(title, columns, (*rows,) or (("none", NOTHING, "0", "0"),))


def _rank_table(
    name: str, ranks: dict[str, list[float | None]], differing: list[dict[str, Any]]
) -> Table:
    found = {block["block"]: counts([block]) for block in differing}
    rows = [
        (f"{block}", *(_rank_cells(ranks[kind][block], found.get(block, {}), kind)))
        for block in range(len(ranks[KINDS[0]]))
        for kind in KINDS
    ]
    columns = ("block", "kind", "rank correlation", "groups kept by one alone")
    return Table(f"{name}: bfloat16 against float32", columns, (*rows,))


def _rank_cells(rank: float | None, found: dict[str, int], kind: str) -> tuple[str, str, str]:
    return kind, NOTHING if rank is None else f"{rank:.6f}", str(found.get(kind, 0))


def _counted(differing: dict[str, int], kept: dict[str, int]) -> str:
    named = (f"{differing[kind]} of {kind.replace('_', ' ')}, {kept[kind]} kept" for kind in KINDS)
    return "kept by one alone: " + "; ".join(named)
