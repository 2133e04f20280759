"""``bipline demo``, ``compress`` and ``sweep``: commands that run a pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from bipline.base.errors import InvalidInput, Refused
from bipline.base.printable import printable
from bipline.face import options
from bipline.face.options import MACHINE, Stack, option
from bipline.face.output import log_file

RunState = Annotated[
    Path | None,
    option("folder of a stack of the run's own, with its store, registry and logs", MACHINE),
]
Local = Annotated[bool, option("a stack of the run's own in .bipline", MACHINE)]
Compile = Annotated[
    Path | None,
    option(
        "write what Kubeflow would be given here, for review; no server is asked, --stack may be "
        "a stack file",
        MACHINE,
        "--compile",
    ),
]
Models = Annotated[
    list[str] | None,
    typer.Option(
        "--model", help="model, in place of the configuration's; repeated: each has its own run"
    ),
]
Schedule = Annotated[
    str | None,
    typer.Option("--schedule", help="CRON: the stack's orchestrator starts it then, not now"),
]
ScheduleName = Annotated[
    str | None, typer.Option("--schedule-name", help="default: compress-NAME of the model")
]
ASSETS = "assets/"
QUICK = (
    "a quick method and a short recovery, about two minutes; `bipline demo --full` takes the "
    "method that auto chooses"
)
SWEPT = "no combination meets the limits under select.at_most; the report has all"


def demo(
    full: Annotated[
        bool, typer.Option("--full", help="criterion auto and a longer recovery, about ten minutes")
    ] = False,
    set_: options.Set = None,
    json_file: options.JsonFile = None,
) -> None:
    """Run the main job on the embedded model, on a local ZenML stack."""
    from bipline.base.bundled import bundled
    from bipline.base.extras import check_all

    check_all(("pipeline", "eval", "recover"), "the demo")
    name = "configs/demo-full.yaml" if full else "configs/demo.yaml"
    settings = _loaded("compress", bundled(name), set_)
    if not full:
        typer.echo(QUICK)
    _compress(_with_assets(settings), json_file)


def compress(
    config: Annotated[Path, typer.Argument(help="YAML file; see `bipline config schema`")],
    model: Models = None,
    effort: options.Effort = None,
    set_: options.Set = None,
    state: RunState = None,
    local: Local = False,
    stack: Stack = None,
    schedule: Schedule = None,
    schedule_name: ScheduleName = None,
    dry_run: options.DryRun = False,
    compile_: Compile = None,
    json_file: options.JsonFile = None,
) -> None:
    """Run the compress pipeline: from a model and its texts to a registered package.

    Of several models each has a run and a registered name of its own; one that fails stops no
    other, and the exit code is the highest of theirs.
    """
    from bipline.settings.loading import load_each

    sets = (*(set_ or ()), *([] if effort is None else [f"effort={effort}"]))
    runs = load_each(config, sets, tuple(model or ()))
    if compile_ is not None:
        not_compiled = {
            "--state": state, "--local": local, "--dry-run": dry_run, "--schedule": schedule,
            "--schedule-name": schedule_name,
        }  # fmt: skip
        _compile(runs, not_compiled, stack, compile_, json_file)
        return
    runs = tuple(_on_stack(each, state, local, stack) for each in runs)
    if schedule is not None or schedule_name is not None:
        from bipline.face.scheduling import schedule_runs

        schedule_runs(runs, schedule, schedule_name, dry_run, json_file)
    elif len(runs) == 1:
        _compress(runs[0], json_file, dry_run)
    elif dry_run:
        _tell_each(runs, json_file)
    else:
        _compress_each(runs, json_file)


def sweep(
    config: Annotated[Path, typer.Argument(help="YAML file; see `bipline config schema sweep`")],
    set_: options.Set = None,
    state: RunState = None,
    local: Local = False,
    stack: Stack = None,
    dry_run: options.DryRun = False,
    json_file: options.JsonFile = None,
) -> None:
    """Run the sweep pipeline: score once per criterion, measure every row, pick the best."""
    settings = _on_stack(_loaded("sweep", config, set_), state, local, stack)
    summary = _run("sweep", settings, json_file, dry_run)
    if summary and settings.select and summary.best is None:
        raise Refused(SWEPT)


def _compress(settings: Any, json_file: Path | None, dry_run: bool = False) -> None:
    """A run whose gate refused ends well in all else, and says so by its exit code."""
    from bipline.stages.other_registries import raise_first

    summary = _run("compress", settings, json_file, dry_run)
    if summary and summary.registration.refusal:
        raise Refused(summary.registration.refusal)
    if summary:
        raise_first(summary.registration.also)


def _compile(
    runs: tuple[Any, ...],
    not_compiled: Mapping[str, Any],
    stack: str | None,
    out: Path,
    json_file: Path | None,
) -> None:
    """Compile the one run that is asked for. Raises InvalidInput for flags that would be lost."""
    from bipline.face.console import working
    from bipline.face.stacks import compiled as compile_

    if lost := [flag for flag, value in not_compiled.items() if value]:
        raise InvalidInput(f"--compile only writes a file for review; leave out {', '.join(lost)}")
    if len(runs) > 1:
        raise InvalidInput(f"--compile writes one run, not {len(runs)}; give one --model")
    [settings] = runs
    with working(log_file(settings.folder, "compile")):
        compiled = compile_(settings, stack, out, json_file)
    typer.echo(printable(f"{out}: {len(compiled['steps'])} steps for stack {compiled['stack']}"))


def _compress_each(runs: tuple[Any, ...], json_file: Path | None) -> None:
    """A run for each model, and how they ended in a table."""
    from bipline.face import several, tables
    from bipline.face.console import working

    with working(log := log_file(runs[0].folder, "compress")) as console:
        summary = several.compress_each(runs, json_file=json_file)
        tables.print_several(console, summary, log)
    if error := several.error_of(summary):
        raise error


def _tell_each(runs: tuple[Any, ...], json_file: Path | None) -> None:
    """What would be done for each model, or why it cannot be; ends as the runs would."""
    from bipline.base.errors import BiplineError

    worst: BiplineError | None = None
    for number, each in enumerate(runs, start=1):
        typer.echo(printable(f"model {number} of {len(runs)}: {each.model}"))
        try:
            _run("compress", each, json_file, dry_run=True)
        except BiplineError as error:
            typer.echo(printable(f"refused    {error}"))
            worst = max(worst or error, error, key=lambda found: found.exit_code)
    if worst:
        raise worst


def _loaded(pipeline: str, config: Path, overrides: list[str] | None) -> Any:
    from bipline.settings.loading import KINDS, load

    return load(KINDS[pipeline], config, tuple(overrides or ()))


def _on_stack(settings: Any, state: Path | None, local: bool, stack: str | None) -> Any:
    """The settings with where the flags say that they run."""
    from bipline.settings.loading import placed
    from bipline.settings.stack import USUAL_STATE

    if local and state is None:
        state = Path(settings.state or USUAL_STATE)
    return placed(settings, state, stack)


def _run(pipeline: str, settings: Any, json_file: Path | None, dry_run: bool = False) -> Any:
    """Run a pipeline and print what it came to; a dry run prints what it would do."""
    from bipline.face import api, tables
    from bipline.face.console import working
    from bipline.face.running import checked

    if dry_run:
        for stage, text in checked(settings, thorough=True, json_file=json_file):
            typer.echo(printable(f"{stage:<11}{text}"))
        if pipeline == "compress":
            from bipline.face.stacks import told_needs

            for step, text in told_needs(settings):
                typer.echo(printable(f"  {step:<26}{text}"))
        return None
    with working(log := log_file(settings.folder, pipeline)) as console:
        summary = getattr(api, pipeline)(settings, json_file=json_file)
        tables.print_ended(console, summary, log)
    return summary


def _with_assets(settings: Any) -> Any:
    """The demo's settings with what is embedded where it lies, in a checkout or a wheel."""
    from bipline.base.bundled import bundled

    def place(source: str) -> str:
        return str(bundled(source)) if source.startswith(ASSETS) else source

    def places(sources: Mapping[str, str]) -> dict[str, str]:
        return {name: place(source) for name, source in sources.items()}

    updates = {"model": place(settings.model), "texts": places(settings.texts)}
    return settings.model_copy(update={**updates, "tasks": places(settings.tasks)})
