"""What ``bipline prune`` tells at its end: sizes, ratio, seconds beside their floor, memory."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from bipline.base.progress import note
from bipline.compression.allocation.widths import Widths
from bipline.compression.compensation.memory import moments_operations, rows_operations
from bipline.compression.criteria import load_criterion
from bipline.model.block_loop import BlockLoop
from bipline.model.checkpoint import Checkpoint
from bipline.model.devices import choose_device, torch_dtype
from bipline.model.floor import Rates, Work, forward_operations, measure_rates
from bipline.model.memory import PeakMemory
from bipline.model.shapes import ModelShape
from bipline.storage.manifest import Manifest
from bipline.values.compensation import CompensationRecord
from bipline.values.plan import PruningPlan

if TYPE_CHECKING:
    from bipline.face.prune_request import PruneRequest

# Below this, start-up and small files are most of a stage, and a floor says nothing.
FLOOR_FROM_SECONDS = 5.0
# Forward passes that a criterion's work is worth at least: a backward pass counts as two.
PASSES = {"moments": 1, "tokens": 1, "gradients": 3}


class Clock:
    """Seconds per stage; stages follow each other and are never nested, so they add up.

    ``whole`` is false where a part of the work was done by an earlier run; ``scored`` is true
    where windows were scored in this one.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.whole = True
        self.scored = False

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time the block under this stage's name."""
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 3)


def prune_result(
    request: PruneRequest,
    checkpoint: Checkpoint,
    plan: PruningPlan,
    manifest: Manifest,
    clock: Clock,
    peak: PeakMemory,
) -> dict[str, Any]:
    """The result as JSON; see the command's description for the fields."""
    blocks = checkpoint.shape.linear_weights
    after = manifest.info["parameters"]
    return {
        "schema_version": 1,
        "model": request.model,
        "out": str(request.out),
        "digest": manifest.digest,
        "plan_digest": plan.digest,
        "criterion": plan.criterion,
        "allocation": plan.allocation,
        "layout": plan.layout,
        "compensation": _compensation(plan),
        "widths": [block.widths for block in plan.blocks],
        "parameters": {"before": checkpoint.parameters, "after": after},
        "block_parameters": {
            "before": blocks,
            "after": blocks - _removed_weights(checkpoint, plan),
        },
        "ratio": {**plan.budget.model_dump(), "reached": plan.budget.reached},
        "notes": list(plan.notes),
        "seconds": {"stage": clock.seconds, "total": round(sum(clock.seconds.values()), 3)},
        "peak_rss_bytes": peak.resident,
        "peak_anonymous_bytes": peak.anonymous,
        "peak_device_bytes": peak.device,
        **_floor(request, checkpoint, plan, manifest, clock),
    }


def _compensation(plan: PruningPlan) -> dict[str, Any]:
    """The form, how many matrices took which, and the blocks' summed held-out errors."""
    record = plan.compensated
    if record is None:
        return {"form": plan.compensation}
    return {
        "form": plan.compensation,
        "corrections": record.corrections,
        "matrices": record.forms(),
        "error_without": record.error_without,
        "error": record.error,
    }


def _removed_weights(checkpoint: Checkpoint, plan: PruningPlan) -> int:
    """Linear weights that the plan takes from the blocks."""
    return sum(
        Widths(*block.widths).removed_weights(checkpoint.shape.block(index))
        for index, block in enumerate(plan.blocks)
    )


def _floor(
    request: PruneRequest,
    checkpoint: Checkpoint,
    plan: PruningPlan,
    manifest: Manifest,
    clock: Clock,
) -> dict[str, Any]:
    """The floor of every stage that took long enough, and the rates it follows from."""
    long = [name for name, seconds in clock.seconds.items() if seconds > FLOOR_FROM_SECONDS]
    works = _works(request, checkpoint, plan, manifest, clock.scored)
    measured = [name for name in long if name in works]
    if not measured or not clock.whole:
        return {"floor_seconds": None, "floor_seconds_by_stage": {}, "rates": {}}
    note("measuring this machine's rates, for the floor")
    device = choose_device(request.device)
    loop = BlockLoop(checkpoint, torch_dtype(request.dtype), device, request.micro_batch)
    rates: Rates = measure_rates(loop, request.seqlen, request.out.absolute().parent)
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
    request: PruneRequest,
    checkpoint: Checkpoint,
    plan: PruningPlan,
    manifest: Manifest,
    scored: bool,
) -> dict[str, Work]:
    """What each stage had to do at least; a search has no floor.

    Where no windows were ``scored`` in this run the weights are only read.
    """
    shape = checkpoint.shape
    blocks = sum(
        checkpoint.tensors[full].num_bytes
        for index in range(shape.num_hidden_layers)
        for full in checkpoint.block_names(index).values()
    )
    needs = load_criterion(request.method.criterion).NEEDS
    passes = PASSES.get(needs, 0) if scored else 0
    operations = passes * forward_operations(shape, request.samples, request.seqlen)
    written = sum(
        entry.size for name, entry in manifest.files.items() if name.endswith(".safetensors")
    )
    works = {"prune": Work(read=written, written=written)}
    if record := plan.compensated:
        corrected = _compensation_operations(shape, plan, record, request.seqlen)
        works["compensate"] = Work(read=blocks, operations=corrected)
    if needs != "search":
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
