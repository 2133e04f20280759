"""What ran on a stack, as its servers remember it."""

from __future__ import annotations

from typing import Literal

from bipline.values.frozen import Frozen

SCHEMA_VERSION: Literal[1] = 1


class RunStage(Frozen):
    """A stage of a run, the first that began first; ``seconds`` is None while it runs."""

    name: str
    status: str
    seconds: float | None


class PipelineRun(Frozen):
    """One run of a pipeline. ``status`` is ZenML's, or ``killed`` where its process is gone.

    ``reason`` is why it failed. ``log`` is where its libraries' lines went, if that is here.
    """

    name: str
    pipeline: str
    status: str
    began: str
    seconds: float | None
    reason: str = ""
    log: str | None = None
    stages: tuple[RunStage, ...] = ()

    @property
    def failed_in(self) -> str | None:
        """The stage that it did not get beyond."""
        ended = {"completed", "cached", "reused"}
        return next((each.name for each in self.stages if each.status not in ended), None)


class PipelineRuns(Frozen):
    """Runs of a stack, the last one first; ``stack`` is its folder or its name."""

    schema_version: Literal[1] = SCHEMA_VERSION
    stack: str
    runs: tuple[PipelineRun, ...]
