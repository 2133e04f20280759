"""Runs of ``bipline`` that are killed inside a chosen write or rename.

``python -m tests.faults.killing`` reads requests, one JSON list of arguments a line with the
number of the event to die in, and answers each with how the run ended. It imports everything
once and forks a child for each run, so that a run costs what it does and not what it loads.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

NEVER = -1


class Events:
    """Counts writes and renames; dies by SIGKILL in the middle of number ``fatal``.

    A rename has no middle: ``after`` says on which side of it to die.
    """

    def __init__(self, fatal: int, after: bool, log: int) -> None:
        self.fatal = fatal
        self.after = after
        self.log = log
        self.count = 0

    def happen(self, kind: str, path: Path) -> bool:
        """Record an event; whether this process must die in it."""
        name = re.sub(r"[0-9a-f]{8,}|\d+", "N", path.name)
        os.write(self.log, f"{kind} {name}\n".encode())
        self.count += 1
        return self.count - 1 == self.fatal


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class DyingFile:
    """A file opened for writing whose fatal write stops half way."""

    def __init__(self, file: Any, path: Path, events: Events) -> None:
        self._file, self._path, self._events = file, path, events

    def write(self, data: Any) -> int:
        if self._events.happen("write", self._path):
            self._file.write(data[: len(data) // 2])
            self._file.flush()
            die()
        return int(self._file.write(data))

    def __enter__(self) -> DyingFile:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.__exit__(*error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def install(events: Events) -> None:
    """Put the events into everything that the core writes and renames with."""
    from bipline.compression import corrections, score_progress, statistics
    from bipline.storage import synced_file

    opened, replaced, renamed = Path.open, Path.replace, Path.rename
    write_all, save_file = synced_file._write_all, score_progress.save_file

    def open_(self: Path, mode: str = "r", *rest: Any, **named: Any) -> Any:
        file = opened(self, mode, *rest, **named)
        return DyingFile(file, self, events) if set(mode) & set("wx") else file

    def moving(kind: str, move: Callable[[Path, Path], Path]) -> Callable[[Path, Path], Path]:
        def moved(self: Path, target: Path) -> Path:
            if events.happen(kind, Path(target)):
                if events.after:
                    move(self, target)
                die()
            return move(self, target)

        return moved

    def saved(tensors: Any, path: Path) -> None:
        save_file(tensors, path)
        if events.happen("save", path):
            os.truncate(path, path.stat().st_size // 2)
            die()

    def flushed(descriptor: int, data: memoryview) -> None:
        if events.happen("flush", Path(f"/proc/self/fd/{descriptor}").readlink()):
            die()
        write_all(descriptor, data)

    Path.open = open_  # type: ignore[method-assign]
    Path.replace = moving("replace", replaced)  # type: ignore[method-assign, assignment]
    Path.rename = moving("rename", renamed)  # type: ignore[method-assign, assignment]
    score_progress.save_file = statistics.save_file = corrections.save_file = saved
    synced_file._write_all = flushed


def run(arguments: list[str], fatal: int, after: bool, log_path: str) -> None:
    """In a child: one command, killed in event ``fatal`` if it comes to that."""
    from bipline.face.cli import main

    log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    quiet = os.open(f"{log_path}.screen", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    install(Events(fatal, after, log))
    sys.argv = ["bipline", *arguments]
    main()


def serve() -> None:
    """Answer requests until there are no more."""
    import bipline.face.api
    import bipline.stages.beside  # noqa: F401
    from bipline.model.loading import import_libraries

    import_libraries()
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            code = 0
            try:
                run(**request)
            except SystemExit as stop:
                code = int(stop.code or 0)
            os._exit(code)
        _, status = os.waitpid(child, 0)
        print(json.dumps(os.waitstatus_to_exitcode(status)), flush=True)


if __name__ == "__main__":
    serve()
