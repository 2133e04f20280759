"""``bipline compress --schedule`` and ``bipline schedule``: runs by the stack's orchestrator."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bipline.base.errors import InvalidInput
from bipline.base.printable import printable
from bipline.face import options
from bipline.face.options import Stack
from bipline.face.output import log_file, write_json
from bipline.settings.stack import USUAL_STATE, StackSettings

if TYPE_CHECKING:
    from rich.console import Console

    from bipline.settings.compress import CompressSettings
    from bipline.values.schedule import RunSchedule, RunSchedules

LOCAL = (
    "--schedule: state {state} means a stack in that folder, run by ZenML's local orchestrator, "
    "which keeps no schedule; set state to null for your own stack, or start `bipline compress` by "
    "cron, a systemd timer or a Kubernetes CronJob: infra/schedules has an example of each"
)


def schedule_runs(
    runs: Sequence[CompressSettings],
    cron: str | None,
    name: str | None,
    dry_run: bool,
    json_file: Path | None,
) -> None:
    """Let the stack's orchestrator run each configuration at these times.

    All that can be seen to fail is seen before the first is scheduled.
    """
    from bipline.base.extras import check
    from bipline.face.console import working
    from bipline.face.running import checked
    from bipline.settings.cron import next_time

    if cron is None:
        raise InvalidInput("--schedule-name names a schedule: give --schedule CRON too")
    check("pipeline", "--schedule")
    next_time(cron)
    named = {_name(each, name, len(runs)): each for each in runs}
    for each in runs:
        if each.state is not None:
            raise InvalidInput(LOCAL.format(state=each.state))
        checked(each, json_file=json_file)
    asked = import_module("pipelines.schedules")
    with working(log_file(runs[0].folder, "schedule")) as console:
        for each_name, each in named.items():
            asked.check_schedulable(each, each_name)
        if dry_run:
            console.print(f"would be scheduled: {', '.join(named)}; nothing was")
            return
        made = [asked.schedule_compress(each, cron, name) for name, each in named.items()]
        for scheduled in made:
            console.print(_line(scheduled))
    written = [each.model_dump(mode="json") for each in made]
    write_json(json_file, "compress", {"schedules": written})


def list_(stack: Stack = None, json_file: options.JsonFile = None) -> None:
    """The schedules of a stack's ZenML."""
    with _asked(json_file, "schedule list") as (asked, console):
        found: RunSchedules = asked.list_schedules(StackSettings(stack=stack))
        for each in found.schedules:
            console.print(_line(each))
        if not found.schedules:
            console.print(f"no schedule on stack {found.stack}")
    write_json(json_file, "schedule list", found.model_dump(mode="json"))


def remove(
    name: Annotated[str, typer.Argument(help="name of a schedule")], stack: Stack = None
) -> None:
    """Remove a schedule; runs that it has started go on."""
    with _asked(None, "schedule remove") as (asked, console):
        asked.remove_schedule(StackSettings(stack=stack), name)
        console.print(printable(f"{name}: removed"))


@contextmanager
def _asked(json_file: Path | None, command: str) -> Iterator[tuple[Any, Console]]:
    """What the commands on schedules share: ZenML's side, and a console."""
    from bipline.base.extras import check
    from bipline.face import named_places
    from bipline.face.console import working

    check("pipeline", command)
    state = Path(USUAL_STATE)
    named_places.check_registered(None, json_file=json_file, command=command, state=state)
    with working(log_file(state, "schedule")) as console:
        yield import_module("pipelines.schedules"), console


def _name(settings: CompressSettings, name: str | None, count: int) -> str:
    """What a schedule is called; of several each by its registered model."""
    own = f"compress-{settings.promote.name}"
    return own if name is None else (name if count == 1 else f"{name}-{settings.promote.name}")


def _line(each: RunSchedule) -> str:
    state = f"next {each.next}" if each.next else "not active"
    return printable(f"{each.name}  {each.cron}  {state}  {each.pipeline} by {each.orchestrator}")
