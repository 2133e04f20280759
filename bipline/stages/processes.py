"""Scoring by several processes of this machine, started by a stage: what torchrun does by hand.

Every process runs its share of the windows; the first keeps what all of them found. They are
told what to do by a file in the stage's work directory, and each leaves its records there, so a
run that was killed goes on after its last finished block.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict

from bipline.base.errors import BY_EXIT_CODE, BiplineError, EnvironmentFailure
from bipline.base.progress import note
from bipline.compression.criteria import options_of
from bipline.compression.score import score_model
from bipline.compression.statistics import (
    KIND,
    Scores,
    Statistics,
    load_statistics,
    save_statistics,
)
from bipline.compression.workers import joined_workers
from bipline.model.memory import available_bytes
from bipline.settings.line import ComputeSettings, ScoreSettings
from bipline.stages.calibrate import windows_of
from bipline.stages.stage import Context
from bipline.storage.directory import atomic_directory
from bipline.storage.local_store import LocalStore
from bipline.storage.store import Handle
from bipline.values.resolution import ResolvedModel

TASK_NAME, RESULT_NAME = "task.request", "scored"


class ScoreTask(BaseModel):
    """What every process is told."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: ResolvedModel
    calibration: Handle
    settings: ScoreSettings
    compute: ComputeSettings
    seed: int


def scored_by_processes(
    context: Context,
    model: ResolvedModel,
    calibration: Handle,
    settings: ScoreSettings,
    work: Path,
) -> tuple[Statistics, Scores]:
    """Sums and scores by ``compute.processes`` processes: the bits of one.

    Raises what a process raised, and EnvironmentFailure where one is gone.
    """
    if not (work / RESULT_NAME).is_dir():  # else all was done when this process was killed
        compute, here = context.compute, context.store.open(calibration)
        # What one process may use: its share of the memory.
        memory = (compute.max_memory or available_bytes()) // compute.processes
        task = ScoreTask(
            model=model,
            calibration=Handle.to_directory(here),
            settings=settings,
            compute=compute.model_copy(update={"max_memory": memory}),
            seed=context.seed,
        )
        _run(work, task)
    return load_statistics(work / RESULT_NAME)


def _run(work: Path, task: ScoreTask) -> None:
    """Start the processes and wait for them; they end with this one, however it ends."""
    processes = task.compute.processes
    note(f"{processes} processes share the windows")
    for path in work.glob("*.error"):
        path.unlink()
    (work / TASK_NAME).write_text(task.model_dump_json(), encoding="utf-8")
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--no-python",
        "--nproc-per-node", str(processes),
        sys.executable, "-m", "bipline.stages.processes", str(work),
    ]  # fmt: skip
    # Each with the threads of this one, because their number may change the last bits.
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    # Nothing is sent: the pipe says that this process is there.
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE) as started:  # noqa: S603
        try:
            code = started.wait()
        except BaseException:
            started.terminate()
            raise
    if code or not (work / RESULT_NAME).is_dir():
        raise _failure(work)


def perform(work: Path) -> None:
    """One process's part; the first writes what all of them found."""
    task = ScoreTask.model_validate_json((work / TASK_NAME).read_text(encoding="utf-8"))
    context, settings = Context(LocalStore(work), task.compute, task.seed), task.settings
    checkpoint = context.opened(task.model)
    windows = windows_of(context, checkpoint, task.calibration)
    options = options_of(settings.criterion, task.seed, settings.criterion_option)
    with joined_workers() as workers:
        place = work / f"process-{workers.rank}"
        place.mkdir(exist_ok=True)
        found = score_model(checkpoint, windows, settings.criterion, options, place, workers)
        if workers.leads:
            with atomic_directory(work / RESULT_NAME, KIND) as writer:
                save_statistics(*found, writer)


def _failure(work: Path) -> BiplineError:
    """The error that came first: the others only say that somebody is gone."""
    for path in sorted(work.glob("*.error"), key=lambda each: each.stat().st_mtime_ns):
        code, _, text = path.read_text(encoding="utf-8").partition(" ")
        return BY_EXIT_CODE[int(code)](text)
    return EnvironmentFailure("a scoring process is gone, perhaps killed for its memory; run again")


def main() -> None:
    """A process's start: its error is left as a file, for the stage that waits."""
    work = Path(sys.argv[1])
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        perform(work)
    except (BiplineError, OSError) as error:
        code = getattr(error, "exit_code", EnvironmentFailure.exit_code)
        path = work / f"{os.environ.get('RANK', '0')}.error"
        path.write_text(f"{code} {error}", encoding="utf-8")
        sys.exit(code)


def _end_with_parent() -> None:
    """Wait until the pipe from the process that started this one breaks."""
    while os.read(sys.stdin.fileno(), 1):
        pass
    os._exit(EnvironmentFailure.exit_code)


if __name__ == "__main__":
    main()
