"""The command line. Every command is a few lines over one core function.

Exit codes: 0 done, 1 refused or a check failed, 2 bad input, 3 environment (disk full, server
down: a retry may help), 130 interrupted. Heavy imports happen inside the commands, so that
``bipline --help`` answers at once.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Annotated

import typer

from bipline.base.errors import BiplineError
from bipline.face import options
from bipline.face.compare import compare, sweep
from bipline.face.output import log_file as _log
from bipline.face.output import write_json as _write_json

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Structured pruning of large language models with LLM-BIP.",
)
config_app = typer.Typer(no_args_is_help=True, help="What a configuration file may hold.")
app.add_typer(config_app, name="config")
app.command()(compare)
app.command()(sweep)

DEFAULT_STATE = Path(".bipline")
INTERRUPTED = 130


@app.command()
def demo(
    set_: options.Set = None,
    json_file: options.JsonFile = None,
) -> None:
    """Run the main job on the embedded model, on a local ZenML stack."""
    from bipline.face.checkout import checkout_root

    json_file = json_file and json_file.absolute()
    os.chdir(checkout_root())  # the demo's paths are relative to the checkout
    _compress(Path("configs/demo.yaml"), set_, json_file, dry_run=False)


@app.command()
def compress(
    config: Annotated[Path, typer.Argument(help="YAML file; see `bipline config schema`")],
    set_: options.Set = None,
    dry_run: Annotated[bool, typer.Option(help="print the plan of work, do nothing")] = False,
    json_file: options.JsonFile = None,
) -> None:
    """Run the compress pipeline: resolve, calibrate, score, allocate, prune, ..., promote."""
    _compress(config, set_, json_file, dry_run)


@app.command()
def prune(
    model: options.Model,
    out: options.Out,
    ratio: options.Ratio = None,
    ratio_of: options.RatioOf = "blocks",
    criterion: options.Criterion = "auto",
    criterion_option: options.CriterionOption = None,
    allocation: options.Allocation = None,
    allocation_option: options.AllocationOption = None,
    compensation: options.Compensation = None,
    compensation_option: options.CompensationOption = None,
    layout: options.Layout = "uniform",
    keep_first: options.KeepFirst = 0,
    keep_last: options.KeepLast = 0,
    divisible_by: options.DivisibleBy = 1,
    calibration: options.Calibration = None,
    samples: options.FittingSamples = None,
    seqlen: options.Seqlen = 128,
    seed: options.Seed = 0,
    ffn_multiple: options.FfnMultiple = None,
    plan: options.Plan = None,
    plan_out: options.PlanOut = None,
    corrections: options.Corrections = None,
    statistics: options.Statistics = None,
    work: options.Work = None,
    dtype: options.ComputeDtype = "float32",
    device: options.Device = "auto",
    micro_batch: options.MicroBatch = None,
    max_memory: options.MaxMemory = None,
    shard_size: options.ShardSize = "5GB",
    json_file: options.JsonFile = None,
    state: options.State = DEFAULT_STATE,
) -> None:
    """Prune a model block by block, without ZenML or MLflow; killed, it goes on from OUT.work."""
    from bipline.compression.allocate import AllocationRequest
    from bipline.face.console import working
    from bipline.face.prune_job import prune_job
    from bipline.face.prune_request import PruneRequest
    from bipline.face.tables import print_pruned

    method, reason = options.method(
        (criterion, criterion_option), (allocation, allocation_option),
        (compensation, compensation_option), layout, plan is not None or ratio is None,
    )  # fmt: skip
    asked = None if ratio is None else AllocationRequest(
        ratio, ratio_of, method.rule, method.rule_options, seed, layout, ffn_multiple, keep_first,
        keep_last, divisible_by,
    )  # fmt: skip
    request = PruneRequest(
        model=model, out=out, allocation=asked, method=method, calibration=calibration,
        asked_samples=samples, seqlen=seqlen, seed=seed, plan=plan, plan_out=plan_out,
        corrections=corrections, reason=reason, statistics=statistics, work=work, dtype=dtype,
        device=device, micro_batch=micro_batch, max_memory=options.byte_count(max_memory),
        shard_bytes=options.byte_count(shard_size) or 0, downloads=state / "downloads",
    )  # fmt: skip
    with working(log := _log(state, "prune")) as console:
        if (result := prune_job(request)) is None:  # a worker of torchrun; the first one tells
            return
        print_pruned(console, result, log)
    _write_json(json_file, result)


@app.command()
def evaluate(
    model: options.Model,
    text: Annotated[list[str] | None, typer.Option(help="NAME=FILE; may be repeated")] = None,
    tasks: Annotated[str, typer.Option(help="comma-separated names of task files")] = "",
    task_data: Annotated[Path | None, typer.Option(help="folder with NAME.jsonl rows")] = None,
    seqlen: options.Seqlen = 128,
    bos: Annotated[str, typer.Option(help="none, text or window")] = "none",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float64")] = "float32",
    batch_size: Annotated[int, typer.Option(help="sequences a batch in tasks")] = 16,
    speed: Annotated[bool, typer.Option(help="measure prefill and decode speed")] = False,
    baseline: Annotated[str | None, typer.Option(help="model to stand beside")] = None,
    device: options.Device = "auto",
    max_memory: options.MaxMemory = None,
    json_file: options.JsonFile = None,
    state: options.State = DEFAULT_STATE,
) -> None:
    """Perplexity, zero-shot accuracy and speed of a local model directory."""
    from bipline.face.console import working
    from bipline.face.evaluate_job import EvaluateRequest, evaluate_job
    from bipline.face.tables import evaluation_table

    request = EvaluateRequest(
        model=model, baseline=baseline, texts=tuple(text or ()), tasks=tasks,
        task_data=task_data, seqlen=seqlen, bos=bos, dtype=dtype, batch_size=batch_size,
        speed=speed, device=device, max_memory=options.byte_count(max_memory),
    )  # fmt: skip
    with working(log := _log(state, "evaluate")) as console:
        records = evaluate_job(request)
        console.print(evaluation_table(records))
        console.print(f"log: {log}", highlight=False, soft_wrap=True)
    values = {name: record.to_json_value() for name, record in records.items()}
    _write_json(json_file, {**values.pop("model"), **values})


@app.command()
def verify(
    directory: Annotated[Path, typer.Argument(help="a model directory or package")],
) -> None:
    """Re-hash every file of a directory against its manifest."""
    from bipline.storage.manifest import verify_directory

    manifest = verify_directory(directory)
    size = manifest.total_bytes / 1e6
    typer.echo(f"{directory}: {len(manifest.files)} files, {size:.1f} MB, all as listed")
    typer.echo(f"digest {manifest.digest} (unsigned: compare it with the one a registry keeps)")


@config_app.command("schema")
def schema(
    of: Annotated[str, typer.Argument(help="compress or sweep")] = "compress",
) -> None:
    """Print the JSON schema of a compress or a sweep configuration."""
    from bipline.settings.sweep import schema_of

    typer.echo(json.dumps(schema_of(of), indent=2))


def main() -> None:
    """Run the command line; every error is one line and an exit code."""
    try:
        # Typer gives an interruption as a value here, and help as zero.
        if app(standalone_mode=False) == INTERRUPTED:
            _fail("interrupted; nothing was left half written", INTERRUPTED)
    except BiplineError as error:
        _fail(str(error), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        _fail("interrupted; nothing was left half written", INTERRUPTED)
    except OSError as error:
        _fail(f"{error.strerror or error}: {error.filename or ''}".rstrip(": "), 3)
    except MemoryError:
        _fail("out of memory; lower --max-memory or --micro-batch, or free some", 3)
    except Exception as error:
        _fail_unexpectedly(error)


def _compress(config: Path, set_: list[str] | None, json_file: Path | None, dry_run: bool) -> None:
    from bipline.face.checkout import load_pipeline
    from bipline.face.console import working
    from bipline.face.plan_of_work import plan_of_work
    from bipline.face.tables import print_summary
    from bipline.settings.compress import load_config

    settings = load_config(config, tuple(set_ or ()))
    work = plan_of_work(settings)  # also finds what can be seen to fail before anything starts
    if dry_run:
        typer.echo(work)
        return
    run_compress = load_pipeline("run").run_compress
    log = _log(Path(settings.state), "compress")
    with working(log) as console:
        summary = run_compress(settings)
        print_summary(console, summary, log)
    _write_json(json_file, summary.model_dump(mode="json"))


def _fail(message: str, code: int) -> None:
    typer.echo(f"error: {' '.join(message.split())}", err=True)
    sys.exit(code)


def _fail_unexpectedly(error: Exception) -> None:
    """Errors of the command line's own parser, and faults of this program."""
    if hasattr(error, "exit_code") and hasattr(error, "format_message"):
        message = error.format_message()
        _fail(message, 2) if message else sys.exit(2)  # without a command, help was printed
    log = _log(DEFAULT_STATE, "fault")
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text(traceback.format_exc(), encoding="utf-8")
    _fail(f"{type(error).__name__}: {error}; this is a fault of bipline, its trace is in {log}", 1)
