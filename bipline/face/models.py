"""``bipline prune``, ``evaluate`` and ``compare``: commands on models, without a pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from bipline.face import options
from bipline.face.options import (
    CALIBRATION,
    MACHINE,
    OUTPUT,
    PROTOCOL,
    WHAT,
    named_sources,
    option,
    with_settings,
)
from bipline.face.output import log_file
from bipline.settings.line import SECTIONS, CalibrateSettings, CommonSettings, ComputeSettings
from bipline.settings.protocol import Protocol
from bipline.settings.stack import USUAL_STATE
from bipline.settings.sweep import GridSettings

STATE = Path(USUAL_STATE)


@with_settings(*SECTIONS.values(), leave_out=("texts", "parts"))
def prune(
    model: options.Model,
    out: options.Out,
    calibration: options.Calibration = None,
    effort: options.Effort = None,
    seed: options.Seed = 0,
    work: Annotated[
        Path | None, option("where a killed run goes on from (default: OUT.work)")
    ] = None,
    store: Annotated[
        str | None, option("a Store to find in and to keep in: a directory or s3://bucket/prefix")
    ] = None,
    plan_out: Annotated[Path | None, option("also write the plan here")] = None,
    json_file: options.JsonFile = None,
    state: options.State = STATE,
    verbose: options.Verbose = False,
    **settings: Any,
) -> None:
    """Prune a model block by block, without ZenML or MLflow; killed, it goes on from OUT.work."""
    from bipline.face import api
    from bipline.face.console import working
    from bipline.face.tables import print_pruned

    with working(log := log_file(state, "prune")) as console:
        result = api.prune(
            model, out, calibration=calibration, effort=effort, seed=seed, work=work,
            store=store, plan_out=plan_out, json_file=json_file, state=state,
            floor=verbose or json_file is not None, **settings,
        )  # fmt: skip
        if result is None:  # a worker of torchrun; the first one tells
            return
        print_pruned(console, result, log, verbose)


@with_settings(
    Protocol, ComputeSettings,
    leave_out=("micro_batch", "processes", "name", "version", "join"),
)  # fmt: skip
def evaluate(
    model: options.Model,
    protocol: Annotated[
        str | None,
        option(
            "quick, llm-pruner-128, standard-2048, or a YAML file: texts, tasks and settings; "
            "flags change it",
            PROTOCOL,
        ),
    ] = None,
    text: options.Text = None,
    tasks: options.Tasks = "",
    task_data: options.TaskData = None,
    baseline: Annotated[str | None, option("model to stand beside", WHAT)] = None,
    speed: Annotated[bool | None, option("measure prefill and decode speed", WHAT)] = None,
    allow_fitted: Annotated[
        bool, option("measure on text that the model was fitted on too, and say so", WHAT)
    ] = False,
    json_file: options.JsonFile = None,
    state: options.State = STATE,
    **settings: Any,
) -> None:
    """Perplexity, zero-shot accuracy and speed of a model."""
    from bipline.face import api
    from bipline.face.console import working
    from bipline.face.tables import print_evaluated

    with working(log := log_file(state, "evaluate")) as console:
        records = api.evaluate(
            model, texts=named_sources(text), tasks=tasks, task_data=task_data,
            baseline=baseline, protocol=protocol, speed=speed, allow_fitted=allow_fitted,
            json_file=json_file, state=state, **settings,
        )  # fmt: skip
        print_evaluated(console, records, log)


@with_settings(
    CommonSettings, GridSettings, CalibrateSettings, ComputeSettings, Protocol,
    leave_out=("texts", "methods", "processes", "name", "version", "join"),
)  # fmt: skip
def compare(
    models: Annotated[
        list[str], typer.Argument(help="models, as `bipline prune` takes them", show_default=False)
    ],
    out: Annotated[Path, option("folder for results, and for what a later run goes on from", WHAT)],
    calibration: Annotated[
        list[str] | None, option("text: FILE or hf:NAME; may be repeated", CALIBRATION)
    ] = None,
    text: options.Text = None,
    tasks: options.Tasks = "",
    task_data: options.TaskData = None,
    speed: Annotated[
        bool | None,
        option("measure every row's speed in turns with the dense model's; one process", WHAT),
    ] = None,
    criteria: Annotated[
        str | None,
        option(
            "NAME or NAME:KEY=VALUE such as flap:metric=ifv, comma-separated (default: auto, "
            "llm-bip-glu, wanda-sp, magnitude, random; none where a --method is given)",
            WHAT,
        ),
    ] = None,
    method: Annotated[
        list[str] | None,
        option(
            "CRITERION/ALLOCATION/COMPENSATION beside the axes, such as flap/uniform/bias; a part "
            "left out goes with the criterion; may be repeated",
            WHAT,
        ),
    ] = None,
    effort: options.Effort = None,
    evaluation_seqlen: Annotated[
        int, option("window length in tokens, for perplexity", PROTOCOL)
    ] = 128,
    jobs: Annotated[
        int, option("processes, as far as memory has room; they share the cores", MACHINE)
    ] = 1,
    keep: Annotated[bool, option("keep every pruned model, below OUT/models")] = False,
    json_file: options.JsonFile = None,
    csv_file: Annotated[Path | None, option("write the rows as CSV here", OUTPUT, "--csv")] = None,
    html_file: Annotated[Path | None, option("write the report here too", OUTPUT, "--html")] = None,
    state: options.State = STATE,
    **settings: Any,
) -> None:
    """Measure many ways to prune, dense model first, and show them side by side.

    Killed or run again, it goes on from OUT: what is finished there is not computed again. Where
    every combination is refused, nothing was measured: exit code 2.
    """
    from bipline.comparison.grid import check_some_run
    from bipline.face import api
    from bipline.face.console import working
    from bipline.face.tables import print_compared

    with working(log := log_file(state, "compare")) as console:
        comparison = api.compare(
            models, out, calibration=calibration or (), texts=named_sources(text), jobs=jobs,
            tasks=tasks, task_data=task_data, speed=speed, keep=keep, state=state, effort=effort,
            evaluation_seqlen=evaluation_seqlen, criteria=criteria, methods=method,
            json_file=json_file, csv_file=csv_file, html_file=html_file, **settings,
        )  # fmt: skip
        print_compared(console, comparison, out, log)
        check_some_run((row.combination, row.refusal) for row in comparison.rows)
