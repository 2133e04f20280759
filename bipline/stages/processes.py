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
from bipline.model.memory import available_bytes
from bipline.model.opening import open_checkpoint
from bipline.settings.line import ComputeSettings, ScoreSettings
from bipline.storage.directory import atomic_directory
from bipline.values.resolution import ResolvedModel

TASK_NAME, WINDOWS_NAME, RESULT_NAME = "task.request", "windows.safetensors", "scored"
ERRORS = {kind.exit_code: kind for kind in (Refused, InvalidInput, EnvironmentFailure)}


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
    if not (work / RESULT_NAME).is_dir():  # else all was done when this process was killed
        _run(work, windows, ScoreTask(
            model=model, settings=settings, compute=_share(compute), seed=seed,
            windows_digest=windows.digest,
        ))  # fmt: skip
    return load_statistics(work / RESULT_NAME)


def _share(compute: ComputeSettings) -> ComputeSettings:
    """What one process may use: its share of the memory."""
    memory = compute.max_memory or available_bytes()
    return compute.model_copy(update={"max_memory": memory // compute.processes})


def _run(work: Path, windows: Windows, task: ScoreTask) -> None:
    """Start the processes and wait for them; they end with this one, however it ends."""
    processes = task.compute.processes
    note(f"{processes} processes share the windows")
    for path in work.glob("*.error"):
        path.unlink()
    (work / TASK_NAME).write_text(task.model_dump_json(), encoding="utf-8")
    save_file({"token_ids": windows.token_ids}, work / WINDOWS_NAME)
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
    """The error that came first: the others only say that somebody is gone."""
    for path in sorted(work.glob("*.error"), key=lambda each: each.stat().st_mtime_ns):
        code, _, text = path.read_text(encoding="utf-8").partition(" ")
        return ERRORS[int(code)](text)
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
