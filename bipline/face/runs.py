"""``bipline demo``, ``compress`` and ``sweep``: commands that run a pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from bipline.base.errors import Refused
from bipline.face import options
from bipline.face.output import log_file, write_json

ASSETS = "assets/"
QUICK = (
    "a quick method and a short recovery, about two minutes; `bipline demo --full` takes the "
    "method that auto chooses"
)


def demo(
    full: Annotated[
        bool,
        typer.Option("--full", help="criterion auto and a longer recovery, about ten minutes"),
    ] = False,
    set_: options.Set = None,
    json_file: options.JsonFile = None,
) -> None:
    """Run the main job on the embedded model, on a local ZenML stack."""
    from bipline.base.bundled import bundled
    from bipline.base.extras import check_all
    from bipline.settings.compress import CompressSettings
    from bipline.settings.loading import load

    check_all(("pipeline", "eval", "recover"), "the demo")
    name = "configs/demo-full.yaml" if full else "configs/demo.yaml"
    settings = load(CompressSettings, bundled(name), tuple(set_ or ()))
    if not full:
        typer.echo(QUICK)
    _compress(_with_assets(settings), json_file)


def compress(
    config: Annotated[Path, typer.Argument(help="YAML file; see `bipline config schema`")],
    set_: options.Set = None,
    dry_run: options.DryRun = False,
    json_file: options.JsonFile = None,
) -> None:
    """Run the compress pipeline: from a model and its texts to a registered package."""
    from bipline.settings.compress import CompressSettings
    from bipline.settings.loading import load
    from bipline.stages.line import check

    settings = load(CompressSettings, config, tuple(set_ or ()))
    if dry_run:
        _print_plan(check(settings, thorough=True))
    else:
        _compress(settings, json_file)


def sweep(
    config: Annotated[Path, typer.Argument(help="YAML file; see `bipline config schema sweep`")],
    set_: options.Set = None,
    dry_run: options.DryRun = False,
    json_file: options.JsonFile = None,
) -> None:
    """Run the sweep pipeline: score once per criterion, measure every row, pick the best."""
    from bipline.comparison.plan import check_sweep
    from bipline.face import api
    from bipline.face.comparison_tables import print_sweep
    from bipline.face.console import working
    from bipline.settings.loading import load
    from bipline.settings.sweep import SweepSettings

    settings = load(SweepSettings, config, tuple(set_ or ()))
    if dry_run:
        _print_plan(check_sweep(settings))
        return
    with working(log := log_file(Path(settings.state), "sweep")) as console:
        summary = api.sweep(settings)
        print_sweep(console, summary, log)
    write_json(json_file, summary.model_dump(mode="json"))
    if settings.select and summary.best is None:
        raise Refused("no combination meets the limits under select.at_most; the report has all")


def _compress(settings: Any, json_file: Path | None) -> None:
    from bipline.face import api
    from bipline.face.console import working
    from bipline.face.tables import print_summary

    with working(log := log_file(Path(settings.state), "compress")) as console:
        summary = api.compress(settings)
        print_summary(console, summary, log)
    write_json(json_file, summary.model_dump(mode="json"))


def _print_plan(lines: list[tuple[str, str]]) -> None:
    for stage, text in lines:
        typer.echo(f"{stage:<11}{text}")


def _with_assets(settings: Any) -> Any:
    """The demo's settings with what is embedded where it lies, in a checkout or a wheel."""
    from bipline.base.bundled import bundled

    def place(source: str) -> str:
        return str(bundled(source)) if source.startswith(ASSETS) else source

    def places(sources: Mapping[str, str]) -> dict[str, str]:
        return {name: place(source) for name, source in sources.items()}

    updates = {"model": place(settings.model), "texts": places(settings.texts)}
    return settings.model_copy(update={**updates, "tasks": places(settings.tasks)})
