"""``bipline watch``: new releases become compress runs."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bipline.base.errors import BiplineError, EnvironmentFailure, InvalidInput, Refused
from bipline.base.printable import printable
from bipline.face import named_places, options
from bipline.face.options import OUTPUT, option
from bipline.face.output import log_file, write_json

if TYPE_CHECKING:
    from bipline.settings.watch import WatchSettings
    from bipline.values.release import ReleaseStanding, WatchStatus

Once = Annotated[
    bool, typer.Option("--once", help="look once, end when nothing runs or can start: for cron")
]
Status = Annotated[
    bool, typer.Option("--status", help="what became of each release; starts nothing")
]
Retry = Annotated[
    str | None,
    typer.Option("--retry", help="run, release or source that is parked: it may start again"),
]


def watch(
    config: Annotated[Path, typer.Argument(help="YAML file; see `bipline config schema watch`")],
    once: Once = False,
    status: Status = False,
    retry: Retry = None,
    set_: options.Set = None,
    json_file: Annotated[
        Path | None, option("write where every release stands as JSON here", OUTPUT, "--json")
    ] = None,
) -> None:
    """Watch for new releases of models; each starts its compress run exactly once."""
    from bipline.settings.loading import load
    from bipline.settings.watch import WatchSettings
    from bipline.watch.opening import ask_again, open_journal, status_of

    if once + status + (retry is not None) > 1:
        raise InvalidInput("--once, --status and --retry: give one of them")
    settings = load(WatchSettings, config, tuple(set_ or ()))
    named_places.check_registered(None, json_file=json_file, command="watch", state=settings.state)
    journal = open_journal(settings)
    if status:
        _print_status(status_of(journal))
    elif retry is not None:
        for run in ask_again(journal, retry):
            typer.echo(printable(f"{run}: starts at the next chance"))
    wrong = None if status or retry is not None else _watch(settings, once)
    if json_file is not None:
        write_json(json_file, "watch", status_of(journal).model_dump(mode="json"))
    if wrong:
        raise wrong


def _watch(settings: WatchSettings, once: bool) -> BiplineError | None:
    """Watch; the end of one look is what was not as it should be, or None."""
    from bipline.delivery.notices import telling
    from bipline.face.console import working
    from bipline.watch.opening import open_watcher
    from bipline.watch.watcher import watch as watching

    watcher = open_watcher(settings)
    # As for Ctrl-C: what runs is stopped, and that is written down.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    log = log_file(Path(settings.state), "watch")
    with telling(settings.notify), working(log) as console:
        watching(watcher, once, settings.every)
        tally = watcher.tally
        console.print(
            f"{tally.old} old, {len(tally.started)} started, {len(tally.done)} done, "
            f"{len(tally.parked)} parked"
        )
    if tally.parked:
        return Refused(f"parked: {', '.join(tally.parked)}; see bipline watch CONFIG --status")
    if tally.wrong:
        return InvalidInput(tally.wrong[0])
    if tally.unanswered:
        return EnvironmentFailure(f"a source did not answer: {tally.unanswered[0]}")
    return None


def _print_status(status: WatchStatus) -> None:
    for each in status.releases:
        for line in _lines(each):
            typer.echo(printable(line))
    states = [each.state for each in status.releases]
    counted = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    typer.echo(printable(f"{counted or 'no release yet'}; journal {status.journal}"))


def _lines(each: ReleaseStanding) -> list[str]:
    """A release in a line, and what stands in its way in those below."""
    until = f" {each.until}" if each.until else f" since {each.at}"
    lines = [f"{each.state:<12}{each.run}  {each.release.model}{until}"]
    if each.reason:
        lines.append(f"{'':<12}{each.reason}")
    if each.state == "parked" and each.log:
        lines.append(f"{'':<12}log {each.log}; again: --retry {each.run}")
    return lines
