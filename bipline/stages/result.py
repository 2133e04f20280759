"""What ``bipline prune`` tells at its end: sizes, ratio, seconds beside their floor, memory."""

from __future__ import annotations

from collections.abc import Sequence, Set
from pathlib import Path
from typing import Any

from bipline.base.progress import note
from bipline.compression.allocation.widths import Widths
from bipline.compression.least_work import least_work
from bipline.model.block_loop import BlockLoop
from bipline.model.checkpoint import Checkpoint
from bipline.model.devices import choose_device, torch_dtype
from bipline.model.floor import measure_rates
from bipline.model.memory import PeakMemory
from bipline.settings.line import LineSettings
from bipline.stages.line import Smaller
from bipline.stages.stage import StageReport
from bipline.values.plan import PruningPlan
from bipline.values.summary import BeforeAfter, PruneSummary, Seconds

# Below this, start-up and small files are most of a stage, and a floor says nothing.
FLOOR_FROM_SECONDS = 5.0


def prune_summary(
    settings: LineSettings,
    checkpoint: Checkpoint,
    made: Smaller,
    out: Path,
    reports: Sequence[StageReport],
    peak: PeakMemory,
    floor: bool,
) -> PruneSummary:
    """The result of a run that wrote ``out``; with ``floor`` the rates are measured for it.

    ``reports`` are what its stages told; they follow each other, so their seconds add up.
    """
    plan, parameters = made.plan, made.model.info["parameters"]
    seconds = {report.stage: report.seconds for report in reports}
    # Not found, nor made of the sums of another.
    scored = any(r.stage == "score" and r.cost and r.cost.sums_from is None for r in reports)
    long = {stage for stage, taken in seconds.items() if floor and taken > FLOOR_FROM_SECONDS}
    blocks = checkpoint.shape.linear_weights
    removed = sum(
        Widths.of(block).removed_weights(checkpoint.shape.block(index))
        for index, block in enumerate(plan.blocks)
    )
    return PruneSummary(
        model=settings.model,
        out=str(out),
        digest=made.model.digest,
        plan_digest=plan.digest,
        criterion=plan.criterion,
        allocation=plan.allocation,
        layout=plan.layout,
        compensation=_compensation(plan),
        widths=tuple(block.told_widths for block in plan.blocks),
        query_heads=plan.queries_per_group,
        parameters=BeforeAfter(before=checkpoint.parameters, after=parameters),
        block_parameters=BeforeAfter(before=blocks, after=blocks - removed),
        ratio={**plan.budget.model_dump(), "reached": plan.budget.reached},
        notes=plan.notes,
        dtype_choice=made.dtype_choice,
        seconds=Seconds(stage=seconds, total=round(sum(seconds.values()), 3)),
        peak_rss_bytes=peak.resident,
        peak_anonymous_bytes=peak.anonymous,
        peak_device_bytes=peak.device,
        **_floor(settings, checkpoint, made, out, scored, long),
    )


def _compensation(plan: PruningPlan) -> dict[str, Any]:
    """What corrected, how many matrices took which, and the blocks' summed held-out errors."""
    record = plan.compensated
    if record is None:
        return {"name": plan.compensation}
    return {
        "name": plan.compensation,
        "corrections": record.corrections,
        "matrices": record.counts(),
        "error_without": record.error_without,
        "error": record.error,
    }


def _floor(
    settings: LineSettings,
    checkpoint: Checkpoint,
    made: Smaller,
    out: Path,
    scored: bool,
    long: Set[str],
) -> dict[str, Any]:
    """The floor of every stage that took ``long`` enough, and the rates it follows from."""
    seqlen, compute = settings.calibrate.seqlen, settings.compute
    dtype = made.dtype_choice.dtype if made.dtype_choice else compute.named_dtype
    windows = made.calibration.info["samples"] if made.calibration and scored else 0
    written = sum(path.stat().st_size for path in out.glob("*.safetensors"))
    works = least_work(checkpoint, made.plan, settings.score.criterion, windows, seqlen, written)
    works = {stage: work for stage, work in works.items() if stage in long}
    if not works:
        return {"floor_seconds": None, "floor_seconds_by_stage": {}, "rates": {}}
    note("measuring this machine's rates, for the floor")
    device = choose_device(compute.device)
    loop = BlockLoop(checkpoint, torch_dtype(dtype), device, compute.micro_batch)
    rates = measure_rates(loop, seqlen, out.absolute().parent)
    floors = {stage: round(work.seconds(rates), 3) for stage, work in works.items()}
    named = {
        "read_bytes_per_second": rates.read,
        "write_bytes_per_second": rates.write,
        "operations_per_second": rates.compute,
        "operations_per_second_in_float32": rates.wide,
        "operations_per_second_in_bfloat16": rates.quick,
    }
    return {
        "floor_seconds": round(sum(floors.values()), 3),
        "floor_seconds_by_stage": floors,
        "rates": {name: rate for name, rate in named.items() if rate is not None},
    }
