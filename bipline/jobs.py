"""The jobs behind ``bipline prune`` and ``bipline evaluate``: the core path without ZenML."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from bipline.artifacts.directory import atomic_directory, refuse_occupied, write_text
from bipline.artifacts.errors import InvalidInput
from bipline.artifacts.plan import PruningPlan, read_plan
from bipline.artifacts.progress import note
from bipline.artifacts.record import EvaluationRecord
from bipline.compression.allocate import RatioOf, allocate, planned_widths
from bipline.compression.calibrate import CalibrationSet, calibrate
from bipline.compression.criteria import load_criterion
from bipline.compression.criteria.interface import Options
from bipline.compression.prune import check_plan, prune
from bipline.compression.score import (
    KIND,
    Scores,
    Statistics,
    collect_statistics,
    compute_scores,
    empty_statistics,
    load_statistics,
    save_statistics,
)
from bipline.model.checkpoint import Checkpoint, open_checkpoint
from bipline.model.resolve import resolve_text
from bipline.quality.evaluate import evaluate
from bipline.quality.protocols import Protocol, torch_dtype


@dataclass(frozen=True)
class PruneRequest:
    """Everything ``bipline prune`` was told (see its ``--help``)."""

    model: Path
    out: Path
    ratio: float | None
    ratio_of: str
    criterion: str
    calibration: str | None
    samples: int
    seqlen: int
    seed: int
    ffn_multiple: int | None
    plan: Path | None
    plan_out: Path | None
    statistics: Path | None
    dtype: str
    shard_bytes: int
    downloads: Path


@dataclass(frozen=True)
class EvaluateRequest:
    """Everything ``bipline evaluate`` was told (see its ``--help``)."""

    model: Path
    baseline: Path | None
    texts: tuple[str, ...]
    tasks: str
    task_data: Path | None
    seqlen: int
    bos: str
    dtype: str
    batch_size: int
    speed: bool


class Clock:
    """Seconds per stage; stages follow each other and are never nested, so they add up."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time the block under this stage's name."""
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 3)


def prune_job(request: PruneRequest) -> dict[str, Any]:
    """Calibrate, score, allocate and prune; the result as JSON.

    Raises InvalidInput before any work is done where the request can be seen to fail.
    """
    refuse_occupied(request.out)
    clock = Clock()
    checkpoint = open_checkpoint(request.model)
    plan = _given_plan(request, checkpoint) or _new_plan(request, checkpoint, clock)
    if request.plan_out:
        write_text(request.plan_out, plan.to_json())
    with clock.stage("prune"):
        manifest = prune(checkpoint, plan, request.out, request.shard_bytes)
    blocks = checkpoint.shape.block_weights * checkpoint.shape.num_hidden_layers
    return {
        "schema_version": 1,
        "model": str(request.model),
        "out": str(request.out),
        "digest": manifest.digest,
        "plan_digest": plan.digest,
        "criterion": plan.criterion,
        "parameters": {"before": checkpoint.parameters, "after": manifest.info["parameters"]},
        "block_parameters": {
            "before": blocks,
            "after": blocks - (checkpoint.parameters - manifest.info["parameters"]),
        },
        "ratio": {**plan.budget.model_dump(), "reached": plan.budget.reached},
        "notes": list(plan.notes),
        "seconds": {"stage": clock.seconds, "total": round(sum(clock.seconds.values()), 3)},
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def evaluate_job(request: EvaluateRequest) -> dict[str, EvaluationRecord]:
    """Records by name: ``model``, and ``baseline`` under the same protocol where asked."""
    protocol = _protocol(request)
    texts = dict(_named_file(text) for text in request.texts)
    if len(texts) < len(request.texts):
        raise InvalidInput("--text: two texts have the same name; name them apart")
    names = [name.strip() for name in request.tasks.split(",") if name.strip()]
    if names and request.task_data is None:
        raise InvalidInput("--tasks needs --task-data, the folder that holds NAME.jsonl")
    tasks = {name: Path(request.task_data or ".") / f"{name}.jsonl" for name in names}
    if request.baseline:
        open_checkpoint(request.baseline)  # an unusable one must not be found after the long part
    records = {"model": evaluate(request.model, protocol, texts, tasks)}
    if request.baseline:
        records["baseline"] = evaluate(request.baseline, protocol, texts, tasks)
    return records


def _given_plan(request: PruneRequest, checkpoint: Checkpoint) -> PruningPlan | None:
    if request.plan is None:
        return None
    if request.ratio is not None:
        raise InvalidInput("--plan fixes the ratio; give --plan or --ratio, not both")
    plan = read_plan(request.plan)
    check_plan(checkpoint, plan)
    return plan


def _new_plan(request: PruneRequest, checkpoint: Checkpoint, clock: Clock) -> PruningPlan:
    ratio, ratio_of = _checked_ratio(request)
    planned_widths(checkpoint, ratio, ratio_of, request.ffn_multiple)
    torch_dtype(request.dtype)
    scores = _scores(request, checkpoint, clock)
    with clock.stage("allocate"):
        return allocate(checkpoint, scores, ratio, ratio_of, request.ffn_multiple)


def _checked_ratio(request: PruneRequest) -> tuple[float, RatioOf]:
    if request.ratio is None:
        raise InvalidInput("give --ratio (a share between 0 and 1) or --plan")
    for ratio_of in get_args(RatioOf):
        if request.ratio_of == ratio_of:
            return request.ratio, ratio_of
    raise InvalidInput(f"--ratio-of {request.ratio_of!r}: must be blocks or total")


def _scores(request: PruneRequest, checkpoint: Checkpoint, clock: Clock) -> Scores:
    options = Options(seed=request.seed)
    if request.statistics and request.statistics.is_dir() and any(request.statistics.iterdir()):
        note(f"sums come from {request.statistics}; no calibration text is read")
        with clock.stage("score"):
            saved, _ = load_statistics(request.statistics)
            return compute_scores(checkpoint, saved, request.criterion, options)
    calibration = None
    if load_criterion(request.criterion).NEEDS:
        with clock.stage("calibrate"):
            calibration = _calibration(request)
    with clock.stage("score"):
        statistics = _fresh_statistics(request, checkpoint, calibration)
        scores = compute_scores(checkpoint, statistics, request.criterion, options)
        if request.statistics:
            with atomic_directory(request.statistics, KIND) as writer:
                save_statistics(statistics, scores, writer)
    return scores


def _fresh_statistics(
    request: PruneRequest, checkpoint: Checkpoint, calibration: CalibrationSet | None
) -> Statistics:
    if calibration is None:
        return empty_statistics(checkpoint)
    dtype = torch_dtype(request.dtype)
    return collect_statistics(
        checkpoint, calibration.token_ids, calibration.digest, request.criterion, dtype
    )


def _calibration(request: PruneRequest) -> CalibrationSet:
    if request.calibration is None:
        raise InvalidInput(f"criterion {request.criterion} needs --calibration FILE or hf:NAME")
    text = Path(resolve_text(request.calibration, request.downloads).location)
    return calibrate(request.model, {text: 1.0}, request.samples, request.seqlen, request.seed)


def _protocol(request: EvaluateRequest) -> Protocol:
    try:
        return Protocol.model_validate(
            {
                "seqlen": request.seqlen,
                "bos": request.bos,
                "dtype": request.dtype,
                "batch_size": request.batch_size,
                "speed": request.speed,
            }
        )
    except ValidationError as error:
        problem = error.errors()[0]
        raise InvalidInput(
            f"--{problem['loc'][0]} {problem['input']!r}: {problem['msg'].lower()}"
        ) from None


def _named_file(text: str) -> tuple[str, Path]:
    name, equals, file = text.partition("=")
    if not (name and equals and file):
        raise InvalidInput(f"--text {text!r}: write NAME=FILE")
    return name, Path(file)
