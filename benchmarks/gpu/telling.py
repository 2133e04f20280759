"""What the parts tell: values for the JSON, tables and remarks for people."""

from __future__ import annotations

import json
from statistics import fmean
from typing import Any

from benchmarks.gpu.agreement import KINDS, counts, differing_groups, kept_groups, rank_agreement
from benchmarks.gpu.bench import Bench, Findings
from benchmarks.tables import NOTHING, Table, gigabytes_text, seconds_text

STAGES = ("calibrate", "score", "allocate", "compensate", "prune")
# What is kept of a run beside its seconds.
FIELDS = (
    "command", "process_seconds", "read_bytes", "written_bytes", "floor_seconds",
    "floor_seconds_by_stage", "peak_device_bytes", "peak_anonymous_bytes", "peak_rss_bytes",
    "rates", "ratio", "digest", "plan_digest",
)  # fmt: skip


def tell_run(bench: Bench, findings: Findings, name: str, result: dict[str, Any]) -> None:
    """One run of ``bipline prune``: seconds beside floors, and peak memory."""
    stages, floors = _in_order(result["seconds"]["stage"]), result["floor_seconds_by_stage"]
    floored = sum(stages[stage] for stage in floors)
    values = {field: result[field] for field in FIELDS} | {
        "stage_seconds": stages,
        "total_seconds": result["seconds"]["total"],
        "seconds_with_a_floor": floored,
        "seconds_over_floor": floored / sum(floors.values()) if floors else None,
        "disk_floor_seconds": _disk_floor(bench, result),
    }
    findings.values[name] = values
    findings.tables.append(_stage_table(name, values))
    findings.notes += _run_notes(name, values)


def _in_order(stages: dict[str, float]) -> dict[str, float]:
    """Seconds by stage, in the order in which they ran."""
    known = {name: stages[name] for name in STAGES if name in stages}
    return {**known, **stages}


def _disk_floor(bench: Bench, result: dict[str, Any]) -> float | None:
    """Seconds to read the model once and write the smaller one, at the rates of the machine part.

    bipline gives short stages no floor of their own; this one is there at any length.
    """
    told = bench.work / "machine.json"
    if not told.is_file():
        return None
    facts = json.loads(told.read_text(encoding="utf-8"))
    reading = result["read_bytes"] / facts["read_bytes_per_second"]
    return float(reading + result["written_bytes"] / facts["write_bytes_per_second"])


def _run_notes(name: str, values: dict[str, Any]) -> list[str]:
    peaks = {"device": "peak_device_bytes", "anonymous": "peak_anonymous_bytes"}
    shown = [f"{peak} {gigabytes_text(values[field])}" for peak, field in peaks.items()]
    notes = [f"{name}: peak memory: {', '.join(shown)}"]
    if values["disk_floor_seconds"] is not None:
        notes.append(
            f"{name}: reading {gigabytes_text(values['read_bytes'])} and writing "
            f"{gigabytes_text(values['written_bytes'])} at the disk's rates, one after the other, "
            f"takes {seconds_text(values['disk_floor_seconds'])} s"
        )
    return notes


def tell_plans(
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


def tell_scores(bench: Bench, findings: Findings, name: str, first: str, second: str) -> None:
    """How far two runs' scores agree: ranks in every block, and the groups that they keep."""
    ranks = rank_agreement(bench.statistics(first), bench.statistics(second))
    differing = differing_groups(bench.plan(first), bench.plan(second))
    findings.values[name] = {
        "rank_correlation_by_block": ranks,
        "differing": differing,
        "differing_counts": counts(differing),
        "kept_in_float32": kept_groups(bench.plan(second)),
    }
    findings.tables.append(_rank_table(name, ranks, counts(differing)))
    counted = _counted(counts(differing), kept_groups(bench.plan(second)))
    findings.notes.append(f"{name}, bfloat16 against float32: {counted}")


def _stage_table(name: str, values: dict[str, Any]) -> Table:
    floors = values["floor_seconds_by_stage"]
    rows = [
        _stage_row(stage, seconds, floors.get(stage))
        for stage, seconds in values["stage_seconds"].items()
    ]
    if floors:
        floored = values["seconds_with_a_floor"]
        rows.append(_stage_row("stages with a floor", floored, values["floor_seconds"]))
    rows += [
        _stage_row("all stages", values["total_seconds"], None),
        _stage_row("whole process", values["process_seconds"], None),
    ]
    title = f"{name}: `{values['command']}`"
    return Table(title, ("stage", "s", "floor, s", "ratio"), (*rows,))


def _stage_row(stage: str, seconds: float, floor: float | None) -> tuple[str, ...]:
    beside = (seconds_text(floor), f"{seconds / floor:.2f}") if floor else (NOTHING, NOTHING)
    return (stage, seconds_text(seconds), *beside)


def rate_table(facts: dict[str, Any]) -> Table:
    """The rates of disk and device, as :mod:`benchmarks.gpu.rates` measures them."""
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


def _rank_table(name: str, ranks: dict[str, list[float | None]], alone: dict[str, int]) -> Table:
    rows = [_rank_row(kind, ranks[kind], alone[kind]) for kind in KINDS]
    columns = ("kind", "rank correlation, mean", "lowest block", "kept by one alone")
    return Table(f"{name}: bfloat16 against float32", columns, (*rows,))


def _rank_row(kind: str, by_block: list[float | None], alone: int) -> tuple[str, ...]:
    """Blocks whose groups all score alike say nothing."""
    told = [rank for rank in by_block if rank is not None]
    shown = (f"{fmean(told):.6f}", f"{min(told):.6f}") if told else (NOTHING, NOTHING)
    return (kind.replace("_", " "), *shown, str(alone))


def _counted(differing: dict[str, int], kept: dict[str, int]) -> str:
    named = (f"{differing[kind]} of {kind.replace('_', ' ')}, {kept[kind]} kept" for kind in KINDS)
    return "kept by one alone: " + "; ".join(named)
