"""What ``bipline prune`` tells at its end: sizes, ratio, seconds beside their floor, memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bipline.base.progress import note
from bipline.compression.allocation.widths import Widths
from bipline.compression.least_work import least_work
from bipline.model.block_loop import BlockLoop
from bipline.model.checkpoint import Checkpoint
from bipline.model.devices import choose_device, torch_dtype
from bipline.model.floor import Rates, measure_rates
from bipline.model.memory import PeakMemory
from bipline.settings.line import LineSettings
from bipline.stages.stage import StageReport
from bipline.storage.manifest import Manifest
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
    seqlen = settings.calibrate.seqlen
    windows = settings.calibrate.samples or 0 if clock.ran("score") else 0
    written = sum(each.size for n, each in manifest.files.items() if n.endswith(".safetensors"))
    works = least_work(checkpoint, plan, settings.score.criterion, windows, seqlen, written)
    measured = [
        n for n, taken in clock.seconds.items() if taken > FLOOR_FROM_SECONDS and n in works
    ]
    if not measured or not clock.whole:
        return {"floor_seconds": None, "floor_seconds_by_stage": {}, "rates": {}}
    note("measuring this machine's rates, for the floor")
    compute = settings.compute
    device = choose_device(compute.device)
    loop = BlockLoop(checkpoint, torch_dtype(compute.dtype), device, compute.micro_batch)
    rates: Rates = measure_rates(loop, seqlen, out.absolute().parent)
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
