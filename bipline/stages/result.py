"""What ``bipline prune`` tells at its end: sizes, ratio, seconds beside their floor, memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bipline.base.progress import note
from bipline.compression.allocation.widths import Widths
from bipline.compression.compensation.memory import moments_operations, rows_operations
from bipline.compression.criteria import needs_of
from bipline.model.block_loop import BlockLoop
from bipline.model.checkpoint import Checkpoint
from bipline.model.devices import choose_device, torch_dtype
from bipline.model.floor import Rates, Work, forward_operations, measure_rates
from bipline.model.memory import PeakMemory
from bipline.model.shapes import ModelShape
from bipline.settings.line import LineSettings
from bipline.stages.stage import StageReport
from bipline.storage.manifest import Manifest
from bipline.values.compensation import CompensationRecord
from bipline.values.plan import PruningPlan
from bipline.values.summary import BeforeAfter, PruneSummary, Seconds

# Below this, start-up and small files are most of a stage, and a floor says nothing.
FLOOR_FROM_SECONDS = 5.0


@dataclass
class Clock:
    """What the stages of a run told; ``whole`` is false where no floor is to be told."""

    whole: bool = True
    reports: list[StageReport] = field(default_factory=list)

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by stage; stages follow each other, so they add up."""
        return {
            report.stage: sum(report.cost.seconds.values()) if report.cost else 0.0
            for report in self.reports
        }

    def ran(self, stage: str) -> bool:
        """Whether a stage was run: not found, nor made of the sums of another."""
        costs = (each.cost for each in self.reports if each.stage == stage)
        return any(cost is not None and cost.sums_from is None for cost in costs)


def prune_summary(
    settings: LineSettings,
    checkpoint: Checkpoint,
    plan: PruningPlan,
    out: Path,
    manifest: Manifest,
    clock: Clock,
    peak: PeakMemory,
) -> PruneSummary:
    """The result of a run that wrote ``out``."""
    blocks = checkpoint.shape.linear_weights
    removed = sum(
        Widths(*block.widths).removed_weights(checkpoint.shape.block(index))
        for index, block in enumerate(plan.blocks)
    )
    return PruneSummary(
        model=settings.model,
        out=str(out),
        digest=manifest.digest,
        plan_digest=plan.digest,
        criterion=plan.criterion,
        allocation=plan.allocation,
        layout=plan.layout,
        compensation=_compensation(plan),
        widths=tuple(block.widths for block in plan.blocks),
        parameters=BeforeAfter(before=checkpoint.parameters, after=manifest.info["parameters"]),
        block_parameters=BeforeAfter(before=blocks, after=blocks - removed),
        ratio={**plan.budget.model_dump(), "reached": plan.budget.reached},
        notes=plan.notes,
        seconds=Seconds(stage=clock.seconds, total=round(sum(clock.seconds.values()), 3)),
        peak_rss_bytes=peak.resident,
        peak_anonymous_bytes=peak.anonymous,
        peak_device_bytes=peak.device,
        **_floor(settings, checkpoint, plan, out, manifest, clock),
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
    plan: PruningPlan,
    out: Path,
    manifest: Manifest,
    clock: Clock,
) -> dict[str, Any]:
    """The floor of every stage that took long enough, and the rates it follows from."""
    works = _works(settings, checkpoint, plan, manifest, clock)
    measured = [
        n for n, taken in clock.seconds.items() if taken > FLOOR_FROM_SECONDS and n in works
    ]
    if not measured or not clock.whole:
        return {"floor_seconds": None, "floor_seconds_by_stage": {}, "rates": {}}
    note("measuring this machine's rates, for the floor")
    compute = settings.compute
    device = choose_device(compute.device)
    loop = BlockLoop(checkpoint, torch_dtype(compute.dtype), device, compute.micro_batch)
    rates: Rates = measure_rates(loop, settings.calibrate.seqlen, out.absolute().parent)
    floors = {name: round(works[name].seconds(rates), 3) for name in measured}
    return {
        "floor_seconds": round(sum(floors.values()), 3),
        "floor_seconds_by_stage": floors,
        "rates": {
            "read_bytes_per_second": rates.read,
            "write_bytes_per_second": rates.write,
            "operations_per_second": rates.compute,
        },
    }


def _works(
    settings: LineSettings,
    checkpoint: Checkpoint,
    plan: PruningPlan,
    manifest: Manifest,
    clock: Clock,
) -> dict[str, Work]:
    """What each stage had to do at least; a search has no floor.

    Where no windows were scored in this run the weights are only read.
    """
    shape, seqlen = checkpoint.shape, settings.calibrate.seqlen
    blocks = sum(
        checkpoint.tensors[full].num_bytes
        for index in range(shape.num_hidden_layers)
        for full in checkpoint.block_names(index).values()
    )
    needs = needs_of(settings.score.criterion)
    passes = needs.passes if clock.ran("score") else 0
    operations = passes * forward_operations(shape, settings.calibrate.samples or 0, seqlen)
    written = sum(
        entry.size for name, entry in manifest.files.items() if name.endswith(".safetensors")
    )
    works = {"prune": Work(read=written, written=written)}
    if record := plan.compensated:
        corrected = _compensation_operations(shape, plan, record, seqlen)
        works["compensate"] = Work(read=blocks, operations=corrected)
    if needs.sums:
        works["score"] = Work(read=blocks, operations=operations)
    return works


def _compensation_operations(
    shape: ModelShape, plan: PruningPlan, record: CompensationRecord, seqlen: int
) -> float:
    """Both streams, the products of every matrix's inputs, generated text and fitted rows."""
    fitted = record.fitted_tokens + record.random_tokens + record.generated_tokens
    sequential = record.options["sequential"]
    maps = sequential and record.options.get("input_maps", False)
    streams = (2 if sequential else 1) * (fitted + record.held_out_tokens)
    forward = forward_operations(shape, (streams + record.generated_tokens) // seqlen, seqlen)
    moments = shape.num_hidden_layers * moments_operations(shape, fitted, sequential, maps)
    rows, steps = 0.0, record.options.get("row_steps", 0)
    for kept, block in zip(plan.blocks, record.blocks, strict=True):
        works = rows_operations(shape, *kept.widths, fitted, steps)
        for sublayer, work in zip((block.attention, block.ffn), works, strict=True):
            rows += work if sublayer and sublayer.rows_fitted else 0
    return forward + moments + rows
