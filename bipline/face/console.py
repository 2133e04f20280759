"""What the user sees: progress per stage and block, one line per error, noise in a log file.

Other libraries write to standard output and error as they please. While a command works, both
descriptors point at a log file, and the display keeps a descriptor of its own, so nothing a
library prints can tear the progress display. On a terminal progress is drawn by rich; elsewhere
each stage is a plain line.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

from bipline.base.errors import EnvironmentFailure
from bipline.base.progress import listening


class Display:
    """Listens to the core's progress and shows it on one console."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._bars = Progress(
            TextColumn("  {task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        )
        self._running: list[tuple[str, float, TaskID]] = []
        if console.is_terminal:
            self._bars.start()

    def begin(self, description: str, total: int | None) -> None:
        """A task begins; ``total`` is None when its length is not known."""
        bar = self._bars.add_task(description, total=total)
        self._running.append((description, time.perf_counter(), bar))

    def advance(self) -> None:
        """One item of the latest task is done."""
        self._bars.advance(self._running[-1][2])

    def end(self) -> None:
        """The latest task is over; its line stays with the seconds it took."""
        description, start, bar = self._running.pop()
        done = int(self._bars.tasks[self._bars.task_ids.index(bar)].completed)
        self._bars.remove_task(bar)
        seconds = time.perf_counter() - start
        self.console.print(f"  {description}: {done} in {seconds:.1f} s", highlight=False)

    def heading(self, text: str) -> None:
        """A stage begins."""
        self.console.print(f"[bold]{text}[/bold]", highlight=False)

    def note(self, text: str) -> None:
        """One line the user should see."""
        self.console.print(f"  {text}", highlight=False, markup=False)

    def close(self) -> None:
        """Take the bars off the screen."""
        if self._bars.live.is_started:
            self._bars.stop()


@contextmanager
def working(log: Path) -> Iterator[Console]:
    """Show progress while the block runs; everything other libraries print goes to ``log``."""
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        sink = log.open("a", encoding="utf-8")
    except OSError as error:
        raise EnvironmentFailure(f"{log}: the log file cannot be written: {error}") from None
    with sink, _redirected(sink) as terminal:
        console = Console(file=terminal, width=None if terminal.isatty() else 120)
        display = Display(console)
        try:
            with listening(display):
                yield console
        finally:
            display.close()


@contextmanager
def _redirected(sink: TextIO) -> Iterator[TextIO]:
    """Point descriptors 1 and 2 at ``sink``; yield a text file on the old descriptor 1."""
    sys.stdout.flush()
    sys.stderr.flush()
    saved = [os.dup(1), os.dup(2)]
    terminal = os.fdopen(os.dup(saved[0]), "w", encoding="utf-8", buffering=1)
    os.dup2(sink.fileno(), 1)
    os.dup2(sink.fileno(), 2)
    try:
        # The Python objects too: a host program may have put others in their place.
        with redirect_stdout(sink), redirect_stderr(sink):
            yield terminal
    finally:
        terminal.flush()
        sys.stdout.flush()
        sys.stderr.flush()
        for descriptor, original in enumerate(saved, start=1):
            os.dup2(original, descriptor)
            os.close(original)
        terminal.close()
