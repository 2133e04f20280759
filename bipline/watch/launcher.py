"""What starts the run of a release, and tells how it ended: ``bipline compress`` as a process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from bipline.base.errors import EnvironmentFailure, InvalidInput, Refused
from bipline.base.waiting import asked_wait
from bipline.settings.compress import CompressSettings
from bipline.settings.loading import load
from bipline.settings.placeholders import check_plain, filled
from bipline.settings.watch import SourceSettings
from bipline.storage.strict_json import read_json
from bipline.values.release import Release
from bipline.watch.sources import told_time

INTERRUPTED = 130
STOPPED = {INTERRUPTED, -signal.SIGINT}
STOP_SECONDS = 30.0
# How a command's error begins, and the line in a log before what a start prints.
ERROR, START = "error: ", "--- started "
# Of a log's end so much is read for its last error.
LOG_END = 16_384


@dataclass(frozen=True)
class Run:
    """The run that a release starts: always the same for it, so that a second start goes on."""

    release: Release
    config: str
    overrides: tuple[str, ...]
    state: Path | None
    registry: str | None = None

    @property
    def name(self) -> str:
        """Its name in the journal, of its log and of its result."""
        return self.release.run

    @classmethod
    def of(cls, release: Release, source: SourceSettings) -> Run:
        """The run by a source's settings.

        Raises InvalidInput for a configuration that cannot be one.
        """
        name = release.name.rpartition("/")[2]
        if any("{name}" in each for each in source.set):
            check_plain(name)
        parts = {
            "name": name, "revision": release.revision[:12],
            "source": release.source,
        }  # fmt: skip
        overrides = (f"model={release.model}", *(filled(each, parts) for each in source.set))
        settings = load(CompressSettings, Path(source.compress), overrides)
        if source.registered == settings.promote.name:
            raise InvalidInput(
                f"source {release.source}: its runs would register versions of the "
                f"{source.registered} that it watches; set promote.name to another"
            )
        state = None if settings.state is None else settings.folder
        promote = settings.promote
        registry = source.registry or promote.registry_uri or promote.tracking_uri
        return cls(release, source.compress, overrides, state, registry)


@dataclass(frozen=True)
class Ended:
    """How a run ended: its exit code, why, and how long a server asked to wait, in seconds.

    ``asked`` is whether the watcher stopped it; another's SIGTERM is a failure that passes.
    """

    code: int
    reason: str = ""
    wait: int = 0
    asked: bool = False

    @property
    def stopped(self) -> bool:
        """Whether somebody stopped it: no failure."""
        return self.asked or self.code in STOPPED

    @property
    def passing(self) -> bool:
        """Whether a retry may help: the surroundings failed, or the system killed it."""
        return self.code == EnvironmentFailure.exit_code or self.code < 0 or self.code > 128


class Launched(Protocol):
    """A run that was started."""

    @property
    def log(self) -> str | None:
        """Where what it prints goes."""

    def ended(self) -> Ended | None:
        """How it ended, or None while it runs."""

    def stop(self) -> None:
        """Stop it, and wait until it is gone."""


class Launcher(Protocol):
    """What starts runs."""

    def finished(self, run: Run) -> Ended | None:
        """How an earlier start of this run ended, if it left its result."""

    def forget(self, run: Run) -> None:
        """Remove what an earlier start left as its result: the run is asked for anew."""

    def start(self, run: Run, descriptors: Sequence[int]) -> Launched:
        """Start it; ``descriptors`` are files that it must have open as long as it runs."""


class ProcessLauncher:
    """Runs as processes of this machine, with their logs in a folder and their results in one.

    ``results`` is what other machines see too, where there is such a folder.
    """

    def __init__(self, folder: Path, results: Path | None = None) -> None:
        self._folder, self._results = folder, results or folder

    def finished(self, run: Run) -> Ended | None:
        """The result that ``compress --json`` wrote: done, or refused by its gate."""
        try:
            value = read_json(self._result(run), "result")
        except InvalidInput:
            return None
        refusal = (value.get("registration") or {}).get("refusal")
        return Ended(Refused.exit_code, str(refusal)) if refusal else Ended(0)

    def forget(self, run: Run) -> None:
        """Remove the result."""
        self._result(run).unlink(missing_ok=True)

    def start(self, run: Run, descriptors: Sequence[int]) -> Launched:
        """Start it: it ends with this process."""
        result, log = self._result(run), self._folder / "logs" / f"{run.name}.log"
        for path in (result, log):
            path.parent.mkdir(parents=True, exist_ok=True)
        command = [
            *(sys.executable, "-m", "bipline.watch.bound", str(os.getpid())),
            *(sys.executable, "-m", "bipline", "compress", run.config, "--json", str(result)),
            *(part for override in run.overrides for part in ("--set", override)),
        ]
        with log.open("ab") as output:
            output.write(f"{START}{told_time(datetime.now(UTC))}\n".encode())
            output.flush()
            process = subprocess.Popen(  # noqa: S603 - this program
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                pass_fds=descriptors,
            )  # fmt: skip
        return _Process(process, log)

    def _result(self, run: Run) -> Path:
        return self._results / "results" / f"{run.name}.json"


class _Process:
    """A run as a process."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self._process, self._log = process, log
        self._asked = False

    @property
    def log(self) -> str | None:
        return str(self._log)

    def ended(self) -> Ended | None:
        code = self._process.poll()
        if code is None:
            return None
        reason = last_error(self._log) if code else ""
        if not reason and code < 0:
            reason = f"was ended by signal {-code}; the system kills what takes too much memory"
        return Ended(code, reason, asked_wait(reason), self._asked)

    def stop(self) -> None:
        self._asked = True
        with suppress(ProcessLookupError):
            self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def last_error(log: Path) -> str:
    """The last error that the last start told in its log, or empty."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - LOG_END))
        lines = file.read().decode("utf-8", "replace").splitlines()
    for line in reversed(lines):
        if line.startswith(START):
            break
        if line.startswith(ERROR):
            return line.removeprefix(ERROR)
    return ""
