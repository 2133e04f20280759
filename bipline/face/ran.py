"""``bipline runs``: what ran, where it failed, and how to go on."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bipline.base.printable import printable
from bipline.face import options
from bipline.face.options import Stack
from bipline.face.output import log_file, write_json

if TYPE_CHECKING:
    from bipline.values.pipeline_run import PipelineRun, PipelineRuns

GO_ON = "the same command again goes on: stages that ended are found, and no run counts twice"


def runs(
    run: Annotated[str | None, typer.Argument(help="one run by its name, with its stages")] = None,
    state: options.State | None = None,
    stack: Stack = None,
    json_file: options.JsonFile = None,
) -> None:
    """What ran on a stack: how it ended, where it failed, its log, and how to go on."""
    from bipline.base.extras import check
    from bipline.face import named_places
    from bipline.face.console import working
    from bipline.settings.stack import USUAL_STATE, StackSettings

    check("pipeline", "runs")
    folder = state or (Path(USUAL_STATE) if stack is None and Path(USUAL_STATE).is_dir() else None)
    settings = StackSettings(state=None if folder is None else str(folder), stack=stack)
    named_places.check_registered(None, json_file=json_file, command="runs", state=settings.folder)
    asked = import_module("pipelines.runs")
    asked.check_state(settings)  # before a log would make the folder
    with working(log_file(settings.folder, "runs")) as console:
        found: PipelineRuns = asked.list_runs(settings, run)
        for each in found.runs:
            for line in _lines(each, whole=run is not None):
                console.print(printable(line))
        if not found.runs:
            console.print("no run yet")
    write_json(json_file, "runs", found.model_dump(mode="json"))


def _lines(run: PipelineRun, whole: bool) -> list[str]:
    """A run in a line; one that did not end well, or is shown whole, in several."""
    seconds = "" if run.seconds is None else f"  {run.seconds:.1f} s"
    lines = [f"{run.status:<10}{run.name}  {run.began}{seconds}"]
    if whole:
        for stage in run.stages:
            took = "" if stage.seconds is None else f"{stage.seconds:8.1f} s"
            lines.append(f"{'':<10}{stage.name:<20}{stage.status:<10}{took}".rstrip())
    if run.status in ("failed", "killed", "stopped"):
        where = f"in {run.failed_in}" if run.failed_in else "before its first stage"
        lines.append(f"{'':<10}{where}" + (f": {run.reason}" if run.reason else ""))
        lines.append(f"{'':<10}{GO_ON}")
    if run.log and (whole or run.status != "completed"):
        lines.append(f"{'':<10}log: {run.log}")
    return lines
