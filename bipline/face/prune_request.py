"""What ``bipline prune`` was told, and what of it can be seen to fail before any work."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from bipline.base.errors import EnvironmentFailure, InvalidInput
from bipline.base.progress import note
from bipline.compression.allocate import (
    AllocationRequest,
    check_request,
)
from bipline.compression.auto import Method
from bipline.compression.corrections import Corrections, hold_to_plan, open_corrections
from bipline.compression.criteria import options_of
from bipline.compression.criteria.interface import Options
from bipline.compression.prune import check_plan
from bipline.model.checkpoint import Checkpoint
from bipline.model.devices import torch_dtype
from bipline.model.memory import gigabytes
from bipline.storage.directory import occupied
from bipline.values.plan import PruningPlan, read_plan

DEFAULT_SAMPLES = 128


@dataclass(frozen=True)
class PruneRequest:
    """Everything ``bipline prune`` was told (see its ``--help``)."""

    model: str
    out: Path
    allocation: AllocationRequest | None
    method: Method
    calibration: str | None
    asked_samples: int | None
    seqlen: int
    seed: int
    plan: Path | None
    plan_out: Path | None
    corrections: Path | None
    statistics: Path | None
    work: Path | None
    dtype: str
    device: str
    micro_batch: int | None
    max_memory: int | None
    shard_bytes: int
    downloads: Path
    reason: str = ""

    @property
    def samples(self) -> int:
        """How many calibration windows are drawn."""
        return DEFAULT_SAMPLES if self.asked_samples is None else self.asked_samples

    @property
    def scoring(self) -> Options:
        """The criterion's options. Raises InvalidInput for one that does not exist."""
        return options_of(self.method.criterion, self.seed, self.method.criterion_options)

    @property
    def has_corrections(self) -> bool:
        """Whether corrections that an earlier run wrote are to be applied."""
        return occupied(self.corrections)


def with_samples(request: PruneRequest, checkpoint: Checkpoint) -> PruneRequest:
    """The request with the number of samples, where it names none: as many as it needs.

    Raises InvalidInput for a compensation that does not exist.
    """
    if request.asked_samples is not None:
        return request
    needed = request.method.request.least_samples(checkpoint.shape, request.seqlen)
    if needed > DEFAULT_SAMPLES:
        note(f"samples {needed}: compensation needs more than {DEFAULT_SAMPLES} on this model")
    return replace(request, asked_samples=max(DEFAULT_SAMPLES, needed))


def given_plan(
    request: PruneRequest, checkpoint: Checkpoint
) -> tuple[PruningPlan | None, Corrections | None]:
    """The plan that was given, or that of the corrections that were; with those it needs."""
    if request.plan is None and not request.has_corrections:
        return None, None
    if request.plan and request.allocation:
        raise InvalidInput("--plan fixes the ratio; give --plan or --ratio, not both")
    if request.allocation:  # corrections that this very run would write; see realised()
        return None, None
    plan, corrections = read_plan(request.plan) if request.plan else None, None
    if request.has_corrections or (plan and plan.compensated):
        plan, corrections = _realised_plan(request, plan)
    if plan:
        check_plan(checkpoint, plan)
    return plan, corrections


def _realised_plan(
    request: PruneRequest, plan: PruningPlan | None
) -> tuple[PruningPlan, Corrections]:
    """The plan of the corrections, which must be the one that was given beside them."""
    if request.method.compensation not in (None, "none"):
        raise InvalidInput("the plan was compensated already; leave --compensation out")
    if plan and not request.has_corrections:
        hold_to_plan(plan, None)
    held, corrections = open_corrections(cast("Path", request.corrections))
    if plan and plan.digest != held.digest:
        raise InvalidInput(
            f"{request.corrections} holds corrections of another plan ({held.digest[:12]}) than "
            f"{request.plan} ({plan.digest[:12]})"
        )
    return held, corrections


def check_prune_request(
    request: PruneRequest, checkpoint: Checkpoint, given: PruningPlan | None
) -> None:
    """Raise InvalidInput, or EnvironmentFailure for too small a disk, for what must fail."""
    torch_dtype(request.dtype)
    if request.shard_bytes < 1:
        raise InvalidInput(f"shard size {request.shard_bytes}: must be at least one byte")
    if given is None or not given.compensated:
        request.method.request.check(
            checkpoint, request.samples, request.seqlen, request.max_memory
        )
    if given is not None:
        return
    allocation = checked_allocation(checkpoint, request)
    blocks = checkpoint.shape.linear_weights
    whole = checkpoint.parameters if allocation.ratio_of == "total" else blocks
    kept = checkpoint.weight_bytes * (1 - allocation.ratio * whole / checkpoint.parameters)
    _check_disk(request.out, int(kept))


def _check_disk(out: Path, size: int) -> None:
    """Raise EnvironmentFailure when what is to be written cannot fit on the disk."""
    place = out.absolute().parent
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if size > free:
        raise EnvironmentFailure(
            f"no space left at {place}: the pruned model needs {gigabytes(size)}, "
            f"{gigabytes(free)} are free"
        )


def checked_allocation(checkpoint: Checkpoint, request: PruneRequest) -> AllocationRequest:
    """What is to be allocated. Raises InvalidInput where it can be seen to fail."""
    if request.allocation is None:
        raise InvalidInput("give --ratio (a share between 0 and 1) or --plan")
    options = request.scoring
    check_request(checkpoint, request.allocation, request.method.criterion, options.to_json_value())
    return request.allocation
