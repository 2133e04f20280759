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

from bipline.base.errors import InvalidInput
from bipline.base.progress import note
from bipline.compression.allocate import (
    allocate,
    needs_windows,
)
from bipline.compression.allocation.problem import Windows
from bipline.compression.calibrate import calibrate
from bipline.compression.compensation.realise import realise_in
from bipline.compression.computing import Computing
from bipline.compression.corrections import Corrections, open_corrections
from bipline.compression.criteria import load_criterion, modules_of
from bipline.compression.criteria.interface import Options
from bipline.compression.prune import JOURNAL_NAME, prune
from bipline.compression.score import Calibration, compute_scores, hold_to_model, score_model
from bipline.compression.statistics import KIND, Scores, load_statistics, save_statistics
from bipline.compression.workers import Workers, joined_workers
from bipline.face.prune_request import (
    PruneRequest,
    check_prune_request,
    checked_allocation,
    given_plan,
    with_samples,
)
from bipline.face.prune_result import Clock, prune_result
from bipline.model.checkpoint import Checkpoint
from bipline.model.devices import choose_device, torch_dtype
from bipline.model.loading import import_libraries
from bipline.model.memory import watching_memory
from bipline.model.opening import open_checkpoint
from bipline.model.resolve import resolve_text
from bipline.storage.directory import (
    atomic_directory,
    is_finished,
    occupied,
    refuse_occupied,
    write_text,
)
from bipline.storage.stage_key import code_digest, numerics
from bipline.storage.work import claim, has_progress, work_directory
from bipline.values.plan import PruningPlan

CORE = "bipline.compression.score"
NO_WINDOWS = torch.zeros((1, 2), dtype=torch.int64)


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
    given, corrections = given_plan(request, checkpoint)
    request = with_samples(request, checkpoint)
    check_prune_request(request, checkpoint, given)
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
        plan = asked
        if not corrections:
            plan, corrections = planning.realised(asked)
        if request.plan_out:
            write_text(request.plan_out, plan.to_json())
        with clock.stage("prune"):
            manifest = prune(checkpoint, plan, request.out, request.shard_bytes, work, corrections)
    return prune_result(request, checkpoint, plan, manifest, clock, peak)


def _work_path(request: PruneRequest, rank: int = 0) -> Path:
    path = request.work or request.out.with_name(f"{request.out.name}.work")
    return path.with_name(f"{path.name}-{rank}") if rank else path


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
        allocation = checked_allocation(self.checkpoint, self.request)
        measuring = self._windows if needs_windows(allocation) else None
        with self.clock.stage("allocate"):
            return allocate(self.checkpoint, scores, allocation, measuring)

    def realised(self, plan: PruningPlan) -> tuple[PruningPlan, Corrections | None]:
        """The plan as it is carried out, with its corrections where compensation makes any."""
        request, place = self.request, self.request.corrections or self.work / "corrections"
        if request.method.request.form == "none":
            return plan, None
        windows = self._windows
        if request.has_corrections:
            return self._held_corrections(plan, windows)
        if request.corrections is None:  # what a killed run left is made again of its blocks
            shutil.rmtree(place, ignore_errors=True)
        with self.clock.stage("compensate"):
            return realise_in(
                place, self.checkpoint, plan, windows, request.method.request,
                self.work / "compensate",
            )  # fmt: skip

    def _held_corrections(
        self, plan: PruningPlan, windows: Windows
    ) -> tuple[PruningPlan, Corrections]:
        """Corrections that lie there already, where they are what this run would write.

        So they are when a run was killed after them; anything else is refused.
        """
        place, asked = cast("Path", self.request.corrections), self.request.method.request
        held, corrections = open_corrections(place)
        record = held.compensated
        found = record and (record.asked_plan, held.compensation, record.options)
        if (
            record is None
            or found != (plan.digest, asked.chosen, asked.settings.to_json_value())
            or record.calibration_digest != windows.digest
        ):
            raise InvalidInput(
                f"{place}: holds corrections of other inputs or settings; give an empty "
                "directory, or leave --ratio out to apply what is there"
            )
        note(f"corrections come from {place}; no block is corrected again")
        return held, corrections

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
