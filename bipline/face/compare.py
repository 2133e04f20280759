"""``bipline compare`` and ``bipline sweep``: methods side by side, to choose one by its figures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bipline.face import options
from bipline.face.output import log_file, write_json

DEFAULT_STATE = Path(".bipline")


def compare(
    models: options.Models,
    out: options.ComparisonOut,
    calibration: options.Calibrations = None,
    text: options.Texts = None,
    criteria: options.Criteria = None,
    allocations: options.Allocations = None,
    layouts: options.Layouts = "uniform",
    compensations: options.Compensations = None,
    method: options.Methods = None,
    ratios: options.Ratios = "0.2,0.35,0.5",
    seeds: options.Seeds = "0",
    ratio_of: options.RatioOf = "blocks",
    samples: options.Samples = 128,
    seqlen: options.Seqlen = 128,
    evaluation_seqlen: options.EvaluationSeqlen = 128,
    bos: options.Bos = "none",
    keep_first: options.KeepFirst = 0,
    keep_last: options.KeepLast = 0,
    divisible_by: options.DivisibleBy = 1,
    ffn_multiple: options.FfnMultiple = None,
    dtype: options.CommonDtype = "float32",
    device: options.Device = "auto",
    micro_batch: options.MicroBatch = None,
    max_memory: options.MaxMemory = None,
    jobs: options.Jobs = 1,
    keep: options.Keep = False,
    json_file: options.JsonFile = None,
    csv_file: options.CsvFile = None,
    html_file: options.HtmlFile = None,
    state: options.State = DEFAULT_STATE,
) -> None:
    """Measure many ways to prune, dense model first, and show them side by side.

    Killed or run again, it goes on from OUT: what is finished there is not computed again.
    """
    from bipline.comparison.grid import Common
    from bipline.face.compare_job import CompareRequest, compare_job
    from bipline.face.comparison_tables import print_comparison
    from bipline.face.console import working

    request = CompareRequest(
        models=tuple(models), calibrations=tuple(calibration or ()), texts=tuple(text or ()),
        criteria=options.several(criteria or ("" if method else options.COMPARED)),
        allocations=options.several(allocations or ""), layouts=options.several(layouts),
        compensations=options.several(compensations or ""), methods=tuple(method or ()),
        ratios=options.numbers(ratios, float), seeds=options.numbers(seeds, int),
        common=Common(ratio_of, ffn_multiple, keep_first, keep_last, divisible_by),
        samples=samples, seqlen=seqlen, evaluation_seqlen=evaluation_seqlen, bos=bos, dtype=dtype,
        device=device, micro_batch=micro_batch, max_memory=options.byte_count(max_memory),
        jobs=jobs, keep=keep, out=out, copies={"json": json_file, "csv": csv_file,
        "html": html_file}, downloads=state / "downloads",
    )  # fmt: skip
    with working(log := log_file(state, "compare")) as console:
        comparison = compare_job(request)
        print_comparison(console, comparison, out, log)


def sweep(
    config: Annotated[Path, typer.Argument(help="YAML file; see `bipline config schema sweep`")],
    set_: options.Set = None,
    dry_run: Annotated[bool, typer.Option(help="print the plan of work, do nothing")] = False,
    json_file: options.JsonFile = None,
) -> None:
    """Run the sweep pipeline: score once per criterion, measure every row, pick the best."""
    from bipline.base.errors import Refused
    from bipline.face.checkout import load_pipeline
    from bipline.face.comparison_tables import print_sweep
    from bipline.face.console import working
    from bipline.face.sweep_plan import plan_of_sweep
    from bipline.settings.sweep import load_sweep

    settings = load_sweep(config, tuple(set_ or ()))
    work = plan_of_sweep(settings)  # also finds what can be seen to fail before anything starts
    if dry_run:
        typer.echo(work)
        return
    run_sweep = load_pipeline("run_sweep").run_sweep
    with working(log := log_file(Path(settings.state), "sweep")) as console:
        summary = run_sweep(settings)
        print_sweep(console, summary, log)
    write_json(json_file, summary.model_dump(mode="json"))
    if settings.select and summary.best is None:
        raise Refused("no combination meets the limits under select.at_most; the report has all")
