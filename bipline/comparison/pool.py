"""The pool: tasks in this process, or spread over several that memory has room for.

Each of several gets its share of the cores and of the memory. Workers are spawned, and end with
the process that started them, however that ends. Results go into the store.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import connection
from typing import Any

from bipline.base.errors import EnvironmentFailure
from bipline.base.progress import note
from bipline.model.memory import available_bytes, gigabytes
from bipline.settings.line import ComputeSettings
from bipline.stages.stage import Context
from bipline.storage.store import Store

THREADS = "OMP_NUM_THREADS"


@dataclass(frozen=True)
class Task:
    """A stage to call, here or in another process; ``compute.max_memory`` is each process's own."""

    act: Callable[..., Any]
    arguments: tuple[Any, ...]
    store: Store
    compute: ComputeSettings
    seed: int = 0

    def perform(self) -> Any:
        """Its answer. What it opens is closed with the context, which is of this task alone."""
        return self.act(Context(self.store, self.compute, self.seed), *self.arguments)


# Performs tasks by name; tells of each, in the order they end, the name and the answer.
Perform = Callable[[Mapping[Any, Task]], Iterator[tuple[Any, Any]]]


def processes_for(jobs: int, need: int, max_memory: int | None) -> tuple[int, int | None]:
    """How many of ``jobs`` processes memory has room for, and what each of them may use.

    ``need`` and ``max_memory`` are in bytes. One process is always let in: it looks itself, and
    sends hidden states to the disk where it must.
    """
    if jobs == 1:
        return 1, max_memory
    available = available_bytes()
    limit = available if max_memory is None else min(max_memory, available)
    processes = max(1, min(jobs, limit // need))
    if processes < jobs:
        note(
            f"{processes} of {jobs} processes: each needs up to {gigabytes(need)}, and there are "
            f"{gigabytes(limit)}"
        )
    return processes, max_memory if processes == 1 else limit // processes


@contextmanager
def threads_for(processes: int) -> Iterator[None]:
    """Have workers, and the keys of what they compute, count their share of the cores.

    A smaller number that the user set stays; one process is left as it is.
    """
    before = os.environ.get(THREADS)
    if processes > 1:
        cores = len(os.sched_getaffinity(0))
        share = max(1, cores // processes)
        asked = int(before) if before and before.isdigit() else share
        os.environ[THREADS] = str(min(share, asked))
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(THREADS, None)
        else:
            os.environ[THREADS] = before


@contextmanager
def performing(processes: int) -> Iterator[Perform]:
    """How tasks are performed for the length of the block.

    A task's error ends the others and is raised. Raises EnvironmentFailure when a worker is gone.
    """
    if processes == 1:
        yield _in_order
        return
    mine = multiprocessing.active_children()
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, context, _end_with_parent)
    try:
        yield lambda tasks: _as_they_end(pool, tasks)
    except BaseException as error:
        for worker in multiprocessing.active_children():
            if worker not in mine:
                worker.kill()
        if isinstance(error, BrokenProcessPool):
            raise EnvironmentFailure(
                "a worker process is gone, perhaps killed for its memory; finished rows are "
                "kept: run again, with fewer --jobs"
            ) from None
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _in_order(tasks: Mapping[Any, Task]) -> Iterator[tuple[Any, Any]]:
    for name, task in tasks.items():
        yield name, task.perform()


def _as_they_end(pool: ProcessPoolExecutor, tasks: Mapping[Any, Task]) -> Iterator[tuple[Any, Any]]:
    told = {pool.submit(task.perform): name for name, task in tasks.items()}
    for done in as_completed(told):
        yield told[done], done.result()


def _end_with_parent() -> None:
    """In a worker: a thread that ends it when the process that started it is gone."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_wait_and_end, args=(parent.sentinel,), daemon=True).start()


def _wait_and_end(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(1)
