"""The job behind ``bipline prune``: calibrate, score, allocate, compensate, prune; no ZenML.

Everything that can be seen to fail is looked at first. Then the work directory is held, so that a
second run on the same output is refused and a killed one is gone on from.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch

from bipline.artifacts.directory import atomic_directory, is_finished, refuse_occupied, write_text
from bipline.artifacts.errors import EnvironmentFailure, InvalidInput
from bipline.artifacts.plan import PruningPlan, read_plan
from bipline.artifacts.progress import note
from bipline.artifacts.stage_key import code_digest, numerics
from bipline.artifacts.work import claim, has_progress, work_directory
from bipline.compression.allocate import (
    AllocationRequest,
    allocate,
    check_request,
    needs_windows,
)
from bipline.compression.allocation.problem import Windows
from bipline.compression.auto import Method
from bipline.compression.calibrate import calibrate
from bipline.compression.compensation.realise import realise
from bipline.compression.computing import Computing
from bipline.compression.corrections import KIND as CORRECTIONS
from bipline.compression.corrections import Corrections, hold_to_plan, open_corrections
from bipline.compression.criteria import load_criterion, modules_of, options_of
from bipline.compression.criteria.interface import Options
from bipline.compression.prune import JOURNAL_NAME, check_plan, prune
from bipline.compression.score import Calibration, compute_scores, hold_to_model, score_model
from bipline.compression.statistics import KIND, Scores, load_statistics, save_statistics
from bipline.compression.workers import Workers, joined_workers
from bipline.model.checkpoint import Checkpoint
from bipline.model.devices import choose_device
from bipline.model.loading import import_libraries
from bipline.model.memory import gigabytes, watching_memory
from bipline.model.opening import open_checkpoint
from bipline.model.resolve import resolve_text
from bipline.prune_result import Clock, prune_result
from bipline.quality.protocols import torch_dtype

CORE = "bipline.compression.score"
NO_WINDOWS = torch.zeros((1, 2), dtype=torch.int64)


@dataclass(frozen=True)
class PruneRequest:
    """Everything ``bipline prune`` was told (see its ``--help``)."""

    model: str
    out: Path
    allocation: AllocationRequest | None
    method: Method
    calibration: str | None
    samples: int
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
    def scoring(self) -> Options:
        """The criterion's options. Raises InvalidInput for one that does not exist."""
        return options_of(self.method.criterion, self.seed, self.method.criterion_options)

    @property
    def has_corrections(self) -> bool:
        """Whether corrections that an earlier run wrote are to be applied."""
        return occupied(self.corrections)


def prune_job(request: PruneRequest) -> dict[str, Any] | None:
    """Calibrate, score, allocate, compensate and prune; the result as JSON.

    None for a worker that only helps.

    Raises InvalidInput before any work is done where the request can be seen to fail.
    """
    if not is_finished(request.out, _work_path(request) / JOURNAL_NAME):
        refuse_occupied(request.out)
    device, clock = choose_device(request.device), Clock()
    note(f"device {device}, dtype {request.dtype}")
    checkpoint = open_checkpoint(request.model)
    given = _given_plan(request, checkpoint)
    _check_request(request, checkpoint, given)
    if request.reason:
        note(request.reason)
    import_libraries()
    with (
        watching_memory() as peak,
        joined_workers() as workers,
        work_directory(_work_path(request, workers.rank)) as work,
    ):
        clock.whole = not has_progress(work)
        planning = _Planning(request, checkpoint, device, clock, work, workers)
        asked = given or planning.plan()
        if asked is None:
            return None
        plan, corrections = planning.realised(asked)
        if request.plan_out:
            write_text(request.plan_out, plan.to_json())
        with clock.stage("prune"):
            manifest = prune(checkpoint, plan, request.out, request.shard_bytes, work, corrections)
    return prune_result(request, checkpoint, plan, manifest, clock, peak)


def occupied(directory: Path | None) -> bool:
    """Whether there is a directory that holds something."""
    return directory is not None and directory.is_dir() and any(directory.iterdir())


def _work_path(request: PruneRequest, rank: int = 0) -> Path:
    path = request.work or request.out.with_name(f"{request.out.name}.work")
    return path.with_name(f"{path.name}-{rank}") if rank else path


def _given_plan(request: PruneRequest, checkpoint: Checkpoint) -> PruningPlan | None:
    """The plan that was given, or that of the corrections that were."""
    if request.plan is None and not request.has_corrections:
        return None
    if request.allocation is not None:
        given = "--plan fixes" if request.plan else f"{request.corrections} holds a plan that fixes"
        raise InvalidInput(f"{given} the ratio; leave --ratio out")
    plan = read_plan(request.plan) if request.plan else None
    if request.has_corrections or (plan and plan.compensated):
        plan = _realised_plan(request, plan)
    if plan:
        check_plan(checkpoint, plan)
    return plan


def _realised_plan(request: PruneRequest, plan: PruningPlan | None) -> PruningPlan:
    """The plan of the corrections, which must be the one that was given beside them."""
    if request.method.compensation not in (None, "none"):
        raise InvalidInput("the plan was compensated already; leave --compensation out")
    if plan and not request.has_corrections:
        hold_to_plan(plan, None)
    held, _ = open_corrections(cast("Path", request.corrections))
    if plan and plan.digest != held.digest:
        raise InvalidInput(
            f"{request.corrections} holds corrections of another plan ({held.digest[:12]}) than "
            f"{request.plan} ({plan.digest[:12]})"
        )
    return held


def _check_request(
    request: PruneRequest, checkpoint: Checkpoint, given: PruningPlan | None
) -> None:
    torch_dtype(request.dtype)
    if request.shard_bytes < 1:
        raise InvalidInput(f"shard size {request.shard_bytes}: must be at least one byte")
    if given is None or not given.compensated:
        request.method.request.check(
            checkpoint, request.samples, request.seqlen, request.max_memory
        )
    if given is not None:
        return
    allocation = _checked(checkpoint, request)
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


def _checked(checkpoint: Checkpoint, request: PruneRequest) -> AllocationRequest:
    """What is to be allocated. Raises InvalidInput where it can be seen to fail."""
    if request.allocation is None:
        raise InvalidInput("give --ratio (a share between 0 and 1) or --plan")
    options = request.scoring
    check_request(checkpoint, request.allocation, request.method.criterion, options.to_json_value())
    return request.allocation


@dataclass(frozen=True)
class _Planning:
    """From a request to a plan: what needs the work directory, the device and the clock."""

    request: PruneRequest
    checkpoint: Checkpoint
    device: torch.device
    clock: Clock
    work: Path
    workers: Workers

    def plan(self) -> PruningPlan | None:
        """The plan, from saved statistics where they are given, else from a scoring pass.

        None for a worker that only helps to score. A rule that measures runs the windows again.
        """
        scores = self._saved_scores() or self._fresh_scores()
        if not self.workers.leads:
            return None
        allocation = _checked(self.checkpoint, self.request)
        measuring = self._windows if needs_windows(allocation) else None
        with self.clock.stage("allocate"):
            return allocate(self.checkpoint, scores, allocation, measuring)

    def realised(self, plan: PruningPlan) -> tuple[PruningPlan, Corrections | None]:
        """The plan as it is carried out, with its corrections where compensation makes any."""
        request, place = self.request, self.request.corrections or self.work / "corrections"
        if plan.compensated:
            return open_corrections(place)
        if request.method.request.form == "none":
            return plan, None
        windows = self._windows
        if request.corrections is None:  # what a killed run left is made again of its blocks
            shutil.rmtree(place, ignore_errors=True)
        with self.clock.stage("compensate"), atomic_directory(place, CORRECTIONS) as writer:
            work = self.work / "compensate"
            realise(self.checkpoint, plan, windows, request.method.request, writer, work)
        return open_corrections(place)

    def _saved_scores(self) -> Scores | None:
        """Scores as they were saved, or of another criterion from the saved sums."""
        directory, criterion = self.request.statistics, self.request.method.criterion
        if directory is None or not occupied(directory):
            return None
        note(f"sums come from {directory}; no window is scored")
        with self.clock.stage("score"):
            statistics, scores = load_statistics(directory)
            if (scores.criterion, scores.options) == (criterion, self._options.to_json_value()):
                hold_to_model(self.checkpoint, statistics)
                return scores
            return compute_scores(self.checkpoint, statistics, criterion, self._options)

    def _fresh_scores(self) -> Scores:
        request, windows = self.request, self._scored_windows()
        self.clock.scored = bool(windows.digest)
        calibration = Calibration(windows.token_ids, windows.digest)
        with self.clock.stage("score"):
            place = self.work / "score"
            claim(place, self._key(windows))
            statistics, scores = score_model(
                self.checkpoint, calibration, request.method.criterion, self._options,
                windows.computing, place, self.workers,
            )  # fmt: skip
            if request.statistics and self.workers.leads:
                with atomic_directory(request.statistics, KIND) as writer:
                    save_statistics(statistics, scores, writer)
        return scores

    def _scored_windows(self) -> Windows:
        if load_criterion(self.request.method.criterion).NEEDS == "weights":
            return Windows(NO_WINDOWS, Computing())
        return self._windows

    @cached_property
    def _windows(self) -> Windows:
        """The calibration windows and how they are run. Raises InvalidInput without a text."""
        request = self.request
        if request.calibration is None:
            raise InvalidInput(f"{self._measures} needs --calibration FILE or hf:NAME")
        with self.clock.stage("calibrate"):
            text = Path(resolve_text(request.calibration, request.downloads).location)
            drawn = calibrate(
                self.checkpoint.folder, {text: 1.0}, request.samples, request.seqlen, request.seed
            )
        computing = Computing(torch_dtype(request.dtype), self.device, request.micro_batch)
        fitting = computing.within(request.max_memory, self.checkpoint, drawn.token_ids)
        return Windows(drawn.token_ids, fitting, drawn.digest)

    @property
    def _measures(self) -> str:
        """Who runs windows: the criterion, or else the rule, or compensation."""
        request = self.request
        if request.allocation is None:
            return f"compensation {request.method.compensation}"
        if load_criterion(request.method.criterion).NEEDS != "weights":
            return f"criterion {request.method.criterion}"
        if needs_windows(request.allocation):
            return f"allocation {request.allocation.rule}"
        return f"compensation {request.method.compensation}"

    def _key(self, windows: Windows) -> dict[str, Any]:
        """What unfinished scoring must agree in to be gone on from; the ratio is not part of it."""
        request, workers = self.request, self.workers
        samples, seqlen = windows.token_ids.shape
        options = self._options.to_json_value()
        return {
            "model": self.checkpoint.layout_digest,
            "calibration": windows.digest,
            "samples": samples,
            "seqlen": seqlen,
            "criterion": request.method.criterion,
            **{f"option {name}": value for name, value in options.items()},
            "dtype": request.dtype,
            "micro_batch": request.micro_batch,
            "device": self.device.type,
            "workers": f"{workers.rank} of {workers.count}",
            "code": code_digest(CORE, *modules_of(request.method.criterion, self._options)),
            "numerics": numerics(),
        }

    @property
    def _options(self) -> Options:
        return self.request.scoring
