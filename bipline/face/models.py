"""``bipline prune``, ``evaluate`` and ``compare``: commands on models, without a pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from bipline.base.errors import InvalidInput
from bipline.face import options
from bipline.face.options import MACHINE, OUTPUT, WHAT, option, with_settings
from bipline.face.output import log_file, write_json
from bipline.settings.line import (
    AllocateSettings,
    CalibrateSettings,
    CommonSettings,
    CompensateSettings,
    ComputeSettings,
    PruneSettings,
    ScoreSettings,
)
from bipline.settings.protocol import Protocol

STATE = Path(".bipline")


@with_settings(
    {
        WHAT: (ScoreSettings, AllocateSettings, CompensateSettings),
        options.CALIBRATION: (CalibrateSettings,),
        MACHINE: (ComputeSettings,),
        OUTPUT: (PruneSettings,),
    },
    leave_out=("texts", "parts"),
)
def prune(
    model: options.Model,
    out: options.Out,
    calibration: options.Calibration = None,
    seed: options.Seed = 0,
    work: Annotated[
        Path | None, option("where a killed run goes on from (default: OUT.work)")
    ] = None,
    store: Annotated[
        str | None, option("a Store to find in and to keep in: a directory or s3://bucket/prefix")
    ] = None,
    plan_out: Annotated[
        Path | None, option("also write the plan here", callback=options.in_a_folder)
    ] = None,
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
            model, out, calibration=calibration, seed=seed, work=work, store=store,
            plan_out=plan_out, floor=verbose or json_file is not None, state=state, **settings,
        )  # fmt: skip
        if result is None:  # a worker of torchrun; the first one tells
            return
        print_pruned(console, result, log, verbose)
    write_json(json_file, result.model_dump(mode="json"))


@with_settings(
    {WHAT: (), "Protocol": (Protocol,), MACHINE: (ComputeSettings,)},
    leave_out=("micro_batch", "processes"),
)
def evaluate(
    model: options.Model,
    text: Annotated[list[str] | None, option("NAME=FILE; may be repeated", WHAT)] = None,
    tasks: Annotated[str, option("comma-separated names of task files", WHAT)] = "",
    task_data: Annotated[Path | None, option("folder with NAME.jsonl rows", WHAT)] = None,
    baseline: Annotated[str | None, option("model to stand beside", WHAT)] = None,
    speed: Annotated[bool, option("measure prefill and decode speed", WHAT)] = False,
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
    from bipline.face.tables import evaluation_table

    with working(log := log_file(state, "evaluate")) as console:
        records = api.evaluate(
            model, texts=_named(text), tasks=options.several(tasks), task_data=task_data,
            baseline=baseline, speed=speed, allow_fitted=allow_fitted, state=state, **settings,
        )  # fmt: skip
        console.print(evaluation_table(records))
        console.print(f"log: {log}", highlight=False, soft_wrap=True)
    values = {name: record.to_json_value() for name, record in records.items()}
    write_json(json_file, {**values.pop("model"), **values})


@with_settings(
    {
        WHAT: (CommonSettings,),
        options.CALIBRATION: (CalibrateSettings,),
        MACHINE: (ComputeSettings,),
    },
    leave_out=("texts", "processes"),
)
def compare(
    models: Annotated[
        list[str],
        typer.Argument(help="models, as `bipline prune` takes them", show_default=False),
    ],
    out: Annotated[Path, option("folder for results, and for what a later run goes on from", WHAT)],
    calibration: Annotated[
        list[str] | None, option("text: FILE or hf:NAME; may be repeated", options.CALIBRATION)
    ] = None,
    text: Annotated[list[str] | None, option("NAME=FILE to measure on; may be repeated", WHAT)] = (
        None
    ),
    criteria: options.Criteria = None,
    allocations: options.Allocations = None,
    layouts: options.Layouts = "uniform",
    compensations: options.Compensations = None,
    method: options.Methods = None,
    ratios: options.Ratios = "0.2,0.35,0.5",
    seeds: options.Seeds = "0",
    evaluation_seqlen: options.EvaluationSeqlen = 128,
    bos: options.Bos = "none",
    jobs: options.Jobs = 1,
    keep: options.Keep = False,
    json_file: options.JsonFile = None,
    csv_file: options.CsvFile = None,
    html_file: options.HtmlFile = None,
    state: options.State = STATE,
    **settings: Any,
) -> None:
    """Measure many ways to prune, dense model first, and show them side by side.

    Killed or run again, it goes on from OUT: what is finished there is not computed again.
    """
    from bipline.comparison.files import write_copies
    from bipline.face import api
    from bipline.face.comparison_tables import print_comparison
    from bipline.face.console import working

    axes = {
        "criteria": None if criteria is None else options.several(criteria),
        "allocations": options.several(allocations),
        "layouts": options.several(layouts),
        "compensations": options.several(compensations),
        "methods": tuple(method or ()),
        "ratios": options.numbers(ratios, float),
        "seeds": options.numbers(seeds, int),
    }
    with working(log := log_file(state, "compare")) as console:
        comparison = api.compare(
            models, out, calibration=calibration or (), texts=_named(text), jobs=jobs, keep=keep,
            state=state, evaluation_seqlen=evaluation_seqlen, bos=bos, **axes, **settings,
        )  # fmt: skip
        write_copies(comparison, {"json": json_file, "csv": csv_file, "html": html_file})
        print_comparison(console, comparison, out, log)


def _named(given: list[str] | None) -> dict[str, str]:
    """Texts by name. Raises InvalidInput for what is no NAME=FILE, and for a name that is taken."""
    texts: dict[str, str] = {}
    for text in given or ():
        name, equals, source = text.partition("=")
        if not (name and equals and source):
            raise InvalidInput(f"--text {text!r}: write NAME=FILE")
        if name in texts:
            raise InvalidInput(f"--text: two texts are named {name!r}; name them apart")
        texts[name] = source
    return texts
