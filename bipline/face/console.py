"""What the user sees: progress per stage and block, one line per error, noise in a log file.

Other libraries write to standard output and error as they please. While a command works, both
descriptors point at a log file, and the display keeps a descriptor of its own, so nothing a
library prints can tear the progress display. On a terminal progress is drawn by rich; elsewhere
each stage is a plain line. Neither the display nor the log ever ends the work (:mod:`streams`),
and what comes from outside is shown as it is, never as markup or escape (:class:`PlainConsole`).
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, TextIO, cast

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

from bipline.base.printable import printable
from bipline.base.progress import listening, note
from bipline.face.streams import LossyStream, open_lossy, tell_lost


class PlainConsole(Console):
    """A console to which every string is text: no markup, no emoji code, no terminal escape."""

    def render_str(self, text: str, **options: Any) -> Text:
        """The string as it is, its escapes written out."""
        plain = {"markup": False, "emoji": False, "highlight": False}
        return super().render_str(printable(text), **{**options, **plain})


class Display:
    """Listens to the core's progress and shows it on one console."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._bars = Progress(
            TextColumn("  {task.description}", markup=False),
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
        bar = self._bars.add_task(printable(description), total=total)
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
        self.console.print(f"  {description}: {done} in {seconds:.1f} s")

    def heading(self, text: str) -> None:
        """A stage begins."""
        self.console.print(text, style="bold")

    def note(self, text: str) -> None:
        """One line the user should see."""
        self.console.print(f"  {text}")

    def close(self) -> None:
        """Take the bars off the screen."""
        if self._bars.live.is_started:
            self._bars.stop()


@contextmanager
def working(log: Path) -> Iterator[Console]:
    """Show progress while the block runs; everything other libraries print goes to ``log``."""
    sink, missing = _log_stream(log)
    with closing(sink), _redirected(sink) as terminal:
        width = None if terminal.isatty() else 120
        console = PlainConsole(file=cast(TextIO, terminal), width=width)
        display = Display(console)
        try:
            with listening(display):
                if missing:
                    note(missing)
                yield console
        finally:
            display.close()
    tell_lost("the display", terminal)
    tell_lost(str(log), sink)


def _log_stream(log: Path) -> tuple[LossyStream, str | None]:
    """The log, or nowhere with the reason: what libraries print is not worth the work."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        return open_lossy(os.open(log, flags, 0o666)), None
    except OSError as error:
        reason = f"{log}: the log file cannot be written ({error.strerror}); working without one"
        return open_lossy(os.open(os.devnull, flags)), reason


@contextmanager
def _redirected(sink: LossyStream) -> Iterator[LossyStream]:
    """Point descriptors 1 and 2 at ``sink``; yield a stream on the old descriptor 1."""
    sys.stdout.flush()
    sys.stderr.flush()
    saved = [os.dup(1), os.dup(2)]
    terminal = open_lossy(os.dup(saved[0]))
    os.dup2(sink.fileno(), 1)
    os.dup2(sink.fileno(), 2)
    try:
        # The Python objects too: a host program may have put others in their place.
        with redirect_stdout(sink), redirect_stderr(sink):
            yield terminal
    finally:
        terminal.flush()
        sink.flush()
        for descriptor, original in enumerate(saved, start=1):
            os.dup2(original, descriptor)
            os.close(original)
        terminal.close()
