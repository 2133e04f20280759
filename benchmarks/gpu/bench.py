"""Running bipline within a limit of time: each run is a process, driven by its command alone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.gpu.scale import ROOT, TEXT, Scale, Shape, trained_models
from benchmarks.processes import Failed
from benchmarks.running import forget_model
from benchmarks.session import model_bytes
from benchmarks.tables import Section, Table


@dataclass
class Findings:
    """What a part has found so far: it is kept where the part fails later."""

    values: dict[str, Any] = field(default_factory=dict)
    tables: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def section(self) -> Section:
        """The same for people."""
        return Section(self.values, tuple(self.tables), tuple(self.notes))


@dataclass(frozen=True)
class Job:
    """One ``bipline prune``: a name, the model, and flags beyond those that all runs have.

    ``scores`` says to save them, to be compared.
    """

    name: str
    model: Path
    samples: int
    options: tuple[str, ...]
    scores: bool = False


@dataclass
class Bench:
    """One run of the script. ``ends`` is when whatever runs now is stopped, by the monotonic clock.

    Models and results of bipline lie in ``work``; ``log`` takes what every process printed.
    """

    scale: Scale
    work: Path
    log: Path
    ends: float

    def left(self) -> float:
        """Seconds until whatever runs now is stopped."""
        return self.ends - time.monotonic()

    def run(self, words: Sequence[str], threads: int | None = None) -> float:
        """Run a Python module to its end; the seconds that it took.

        Raises Failed, with the last line that it printed, when it fails or takes too long.
        """
        shown, start = f"$ python -m {' '.join(words)}", time.monotonic()
        if self.left() <= 0:
            raise Failed(f"no time left for {words[0]}")
        try:
            finished = subprocess.run(  # noqa: S603 - modules of this project alone
                [sys.executable, "-m", *words], cwd=ROOT, env=_environment(threads), text=True,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False, timeout=self.left(),
            )  # fmt: skip
        except subprocess.TimeoutExpired as late:
            printed = self._logged(shown, late.stdout)
            seconds = f"{late.timeout:.0f} s"
            raise Failed(f"stopped after {seconds}; {words[0]} said: {_last(printed)}") from None
        printed = self._logged(shown, finished.stdout)
        if finished.returncode:
            raise Failed(f"{words[0]} ended with {finished.returncode}: {_last(printed)}")
        return time.monotonic() - start

    def prune(self, job: Job, threads: int | None = None) -> dict[str, Any]:
        """Run ``bipline prune`` from a dropped page cache; its own JSON, with more beside it.

        That is the command, the process's seconds, and the bytes of weights read and written. The
        plan and the scores stay; the smaller model goes.
        """
        folder = self._folder(job.name)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        asked = [*job.options, "--samples", str(job.samples), "--seqlen", str(self.scale.seqlen)]
        places = {
            "--out": folder / "model", "--json": folder / "result.json", "--state": folder,
            "--plan-out": self.plan(job.name), "--calibration": TEXT,
        }  # fmt: skip
        if job.scores:
            places["--statistics"] = self.statistics(job.name)
        files = [word for flag, path in places.items() for word in (flag, str(path))]
        forget_model(job.model)
        seconds = self.run(["bipline", "prune", str(job.model), *asked, *files], threads)
        result = json.loads(places["--json"].read_text(encoding="utf-8"))
        told = {
            "command": " ".join(["bipline prune", job.model.name, *asked]),
            "process_seconds": seconds,
            "read_bytes": model_bytes(job.model),
            "written_bytes": model_bytes(places["--out"]),
        }
        shutil.rmtree(places["--out"])
        return {**result, **told}

    def side_by_side(self, jobs: Sequence[Job]) -> dict[str, dict[str, Any] | Failed]:
        """Several runs at once, each with its share of the cores; a run that failed says why."""
        threads = max(1, (os.cpu_count() or 1) // len(jobs))

        def outcome(job: Job) -> dict[str, Any] | Failed:
            try:
                return self.prune(job, threads)
            except Failed as failure:
                return failure

        with ThreadPoolExecutor(len(jobs)) as pool:
            return dict(zip((job.name for job in jobs), pool.map(outcome, jobs), strict=True))

    def plan(self, name: str) -> Path:
        """Where the plan of a run lies."""
        return self._folder(name) / "plan.json"

    def statistics(self, name: str) -> Path:
        """Where a run that was asked to saves its scores."""
        return self._folder(name) / "statistics"

    def checkpoint(self, shape: Shape) -> Path:
        """A random checkpoint of a shape, made unless it is there."""
        out = self.work / "models" / shape.folder
        if not out.is_dir():
            sizes = [f"{name}={size}" for name, size in shape.changes.items()]
            self.run(["benchmarks.shapes", str(out), shape.name, *sizes])
        return out

    def references(self, findings: Findings) -> dict[str, Path]:
        """The trained models that are here, or what stands in for them; missing ones are noted."""
        if self.scale.stand_in:
            return {"stand-in": self.checkpoint(self.scale.stand_in)}
        found = trained_models()
        missing = [name for name, path in found.items() if path is None]
        findings.values["missing"] = missing
        findings.notes += [f"{name}: not measured, the model is not here" for name in missing]
        return {name: path for name, path in found.items() if path}

    def _folder(self, name: str) -> Path:
        return self.work / "runs" / name

    def _logged(self, shown: str, printed: str | bytes | None) -> str:
        text = printed.decode(errors="replace") if isinstance(printed, bytes) else printed or ""
        with self.log.open("a", encoding="utf-8") as log:
            log.write(f"{shown}\n{text}\n")
        return text


def _environment(threads: int | None) -> dict[str, str]:
    limit = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
    return {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", **limit}


def _last(printed: str) -> str:
    """The line that says most of a failure: the error itself, or what was printed last."""
    lines = [line.strip() for line in printed.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error:")]
    return (errors or lines or ["nothing (killed for want of memory?)"])[-1]
