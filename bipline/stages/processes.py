"""Scoring by several processes of this machine, started by a stage: what torchrun does by hand.

Every process runs its share of the windows; the first keeps what all of them found. They are
told what to do by a file in the stage's work directory, and each leaves its records there, so a
run that was killed goes on after its last finished block.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict
from safetensors.torch import load_file, save_file

from bipline.base.errors import BiplineError, EnvironmentFailure, InvalidInput, Refused
from bipline.base.progress import note
from bipline.compression.computing import Computing
from bipline.compression.criteria import options_of
from bipline.compression.score import score_model
from bipline.compression.statistics import (
    KIND,
    Scores,
    Statistics,
    load_statistics,
    save_statistics,
)
from bipline.compression.windows import Windows
from bipline.compression.workers import joined_workers
from bipline.model.devices import choose_device, torch_dtype
from bipline.model.opening import open_checkpoint
from bipline.settings.line import ComputeSettings, ScoreSettings
from bipline.storage.directory import atomic_directory
from bipline.values.resolution import ResolvedModel

TASK_NAME, WINDOWS_NAME, RESULT_NAME = "task.request", "windows.safetensors", "scored"
ERRORS: dict[int, type[BiplineError]] = {1: Refused, 2: InvalidInput, 3: EnvironmentFailure}


class ScoreTask(BaseModel):
    """What every process is told."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: ResolvedModel
    settings: ScoreSettings
    compute: ComputeSettings
    seed: int
    windows_digest: str


def scored_by_processes(
    model: ResolvedModel,
    windows: Windows,
    settings: ScoreSettings,
    compute: ComputeSettings,
    seed: int,
    work: Path,
) -> tuple[Statistics, Scores]:
    """Sums and scores by ``compute.processes`` processes: the bits of one.

    Raises what a process raised, and EnvironmentFailure where one is gone.
    """
    note(f"{compute.processes} processes share the windows; their progress is in the log")
    task = ScoreTask(
        model=model, settings=settings, compute=compute, seed=seed, windows_digest=windows.digest
    )
    (work / TASK_NAME).write_text(task.model_dump_json(), encoding="utf-8")
    save_file({"token_ids": windows.token_ids}, work / WINDOWS_NAME)
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--no-python",
        "--nproc-per-node", str(compute.processes),
        sys.executable, "-m", "bipline.stages.processes", str(work),
    ]  # fmt: skip
    # Each with the threads of this one, because their number may change the last bits.
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run(command, env=environment, check=False)  # noqa: S603
    if done.returncode or not (work / RESULT_NAME).is_dir():
        raise _failure(work)
    return load_statistics(work / RESULT_NAME)


def perform(work: Path) -> None:
    """One process's part; the first writes what all of them found."""
    task = ScoreTask.model_validate_json((work / TASK_NAME).read_text(encoding="utf-8"))
    checkpoint = open_checkpoint(task.model.location, task.model.tensor_digest)
    token_ids = load_file(work / WINDOWS_NAME)["token_ids"]
    compute, settings = task.compute, task.settings
    device = choose_device(compute.device)
    computing = Computing(torch_dtype(compute.dtype), device, compute.micro_batch)
    fitting = computing.within(compute.max_memory, checkpoint, token_ids)
    windows = Windows(token_ids, task.windows_digest, fitting)
    options = options_of(settings.criterion, task.seed, settings.criterion_option)
    with joined_workers() as workers:
        place = work / f"process-{workers.rank}"
        place.mkdir(exist_ok=True)
        found = score_model(checkpoint, windows, settings.criterion, options, place, workers)
        if workers.leads:
            with atomic_directory(work / RESULT_NAME, KIND) as writer:
                save_statistics(*found, writer)


def _failure(work: Path) -> BiplineError:
    """The first error that a process left, by its exit code."""
    for path in sorted(work.glob("*.error")):
        code, _, text = path.read_text(encoding="utf-8").partition(" ")
        path.unlink()
        return ERRORS.get(int(code), Refused)(text)
    return EnvironmentFailure("a scoring process is gone, perhaps killed for its memory; run again")


def main() -> None:
    """A process's start: its error is left as a file, for the stage that waits."""
    work = Path(sys.argv[1])
    try:
        perform(work)
    except BiplineError as error:
        rank = os.environ.get("RANK", "0")
        (work / f"{rank}.error").write_text(f"{error.exit_code} {error}", encoding="utf-8")
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
