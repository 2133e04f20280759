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
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from bipline.artifacts.errors import BiplineError, InvalidInput

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Structured pruning of large language models with LLM-BIP.",
)
config_app = typer.Typer(no_args_is_help=True, help="What a configuration file may hold.")
app.add_typer(config_app, name="config")


def _in_a_folder(path: Path | None) -> Path | None:
    """Refuse a result file whose folder is missing now, not after the work."""
    if path is not None and not path.absolute().parent.is_dir():
        raise InvalidInput(f"{path}: its folder does not exist")
    return path


ModelArgument = Annotated[Path, typer.Argument(help="model directory (safetensors)")]
JsonOption = Annotated[
    Path | None,
    typer.Option("--json", help="write the result as JSON here", callback=_in_a_folder),
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="section.field=value; may be repeated")
]
StateOption = Annotated[Path, typer.Option(help="folder for logs and state")]
DEFAULT_STATE = Path(".bipline")
INTERRUPTED = 130


@app.command()
def demo(
    set_: SetOption = None,
    json_file: JsonOption = None,
) -> None:
    """Run the main job on the embedded model, on a local ZenML stack."""
    from bipline.checkout import checkout_root

    json_file = json_file and json_file.absolute()
    os.chdir(checkout_root())  # the demo's paths are relative to the checkout
    _compress(Path("configs/demo.yaml"), set_, json_file, dry_run=False)


@app.command()
def compress(
    config: Annotated[Path, typer.Argument(help="YAML file; see `bipline config schema`")],
    set_: SetOption = None,
    dry_run: Annotated[bool, typer.Option(help="print the plan of work, do nothing")] = False,
    json_file: JsonOption = None,
) -> None:
    """Run the compress pipeline: resolve, calibrate, score, allocate, prune, ..., promote."""
    _compress(config, set_, json_file, dry_run)


@app.command()
def prune(
    model: ModelArgument,
    out: Annotated[Path, typer.Option(help="output directory; must be empty or not exist")],
    ratio: Annotated[float | None, typer.Option(help="share to remove, between 0 and 1")] = None,
    ratio_of: Annotated[
        str, typer.Option(help="blocks: their linear weights; or total")
    ] = "blocks",
    criterion: Annotated[str, typer.Option(help="llm-bip-glu, llm-bip, magnitude, random")] = (
        "llm-bip-glu"
    ),
    calibration: Annotated[str | None, typer.Option(help="text: FILE or hf:NAME?split=...")] = None,
    samples: Annotated[int, typer.Option(help="number of calibration windows")] = 128,
    seqlen: Annotated[int, typer.Option(help="window length in tokens")] = 128,
    seed: Annotated[int, typer.Option(help="draws calibration windows and random scores")] = 0,
    ffn_multiple: Annotated[
        int | None, typer.Option(help="cut FFN channels in multiples of this [default: chosen]")
    ] = None,
    plan: Annotated[Path | None, typer.Option(help="apply this plan, compute nothing")] = None,
    plan_out: Annotated[
        Path | None, typer.Option(help="also write the plan here", callback=_in_a_folder)
    ] = None,
    statistics: Annotated[
        Path | None, typer.Option(help="saved statistics: reuse or write")
    ] = None,
    dtype: Annotated[str, typer.Option(help="compute dtype: float32 or bfloat16")] = "float32",
    shard_size: Annotated[int, typer.Option(help="largest shard in bytes")] = 5 * 10**9,
    json_file: JsonOption = None,
    state: StateOption = DEFAULT_STATE,
) -> None:
    """Prune a local model directory, without ZenML or MLflow."""
    from bipline.console import working
    from bipline.jobs import PruneRequest, prune_job

    request = PruneRequest(
        model=model, out=out, ratio=ratio, ratio_of=ratio_of, criterion=criterion,
        calibration=calibration, samples=samples, seqlen=seqlen, seed=seed,
        ffn_multiple=ffn_multiple, plan=plan, plan_out=plan_out, statistics=statistics,
        dtype=dtype, shard_bytes=shard_size, downloads=state / "downloads",
    )  # fmt: skip
    with working(log := _log(state, "prune")) as console:
        result = prune_job(request)
        _print_pruned(console, result, out, log)
    _write_json(json_file, result)


@app.command()
def evaluate(
    model: ModelArgument,
    text: Annotated[list[str] | None, typer.Option(help="NAME=FILE; may be repeated")] = None,
    tasks: Annotated[str, typer.Option(help="comma-separated names of task files")] = "",
    task_data: Annotated[Path | None, typer.Option(help="folder with NAME.jsonl rows")] = None,
    seqlen: Annotated[int, typer.Option(help="window length in tokens")] = 128,
    bos: Annotated[str, typer.Option(help="none, text or window")] = "none",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float64")] = "float32",
    batch_size: Annotated[int, typer.Option(help="sequences a batch in tasks")] = 16,
    speed: Annotated[bool, typer.Option(help="measure prefill and decode speed")] = False,
    baseline: Annotated[Path | None, typer.Option(help="model to stand beside")] = None,
    json_file: JsonOption = None,
    state: StateOption = DEFAULT_STATE,
) -> None:
    """Perplexity, zero-shot accuracy and speed of a local model directory."""
    from bipline.console import working
    from bipline.jobs import EvaluateRequest, evaluate_job
    from bipline.tables import evaluation_table

    request = EvaluateRequest(
        model=model, baseline=baseline, texts=tuple(text or ()), tasks=tasks,
        task_data=task_data, seqlen=seqlen, bos=bos, dtype=dtype, batch_size=batch_size,
        speed=speed,
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
    from bipline.artifacts.manifest import verify_directory

    manifest = verify_directory(directory)
    size = manifest.total_bytes / 1e6
    typer.echo(f"{directory}: {len(manifest.files)} files, {size:.1f} MB, all as listed")
    typer.echo(f"digest {manifest.digest} (unsigned: compare it with the one a registry keeps)")


@config_app.command("schema")
def schema() -> None:
    """Print the JSON schema of a compress configuration."""
    from bipline.config import config_schema

    typer.echo(json.dumps(config_schema(), indent=2))


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
    except Exception as error:
        _fail_unexpectedly(error)


def _compress(config: Path, set_: list[str] | None, json_file: Path | None, dry_run: bool) -> None:
    from bipline.checkout import load_pipeline
    from bipline.config import load_config
    from bipline.console import working
    from bipline.plan_of_work import plan_of_work
    from bipline.tables import print_summary

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


def _print_pruned(console: Any, result: dict[str, Any], out: Path, log: Path) -> None:
    ratio, parameters = result["ratio"], result["parameters"]
    console.print(
        f"{out}: {parameters['before']:,} -> {parameters['after']:,} parameters; ratio asked "
        f"{ratio['asked']:g} of {ratio['of']}, reached {ratio['reached_blocks']:.4f} of the "
        f"blocks, {ratio['reached_total']:.4f} of all; {result['seconds']['total']:.1f} s",
        highlight=False,
        soft_wrap=True,
    )
    console.print(f"log: {log}", highlight=False, soft_wrap=True)


def _log(state: Path, command: str) -> Path:
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    return state / "logs" / f"{command}-{stamp}.log"


def _write_json(path: Path | None, value: dict[str, Any]) -> None:
    if path is not None:
        from bipline.artifacts.directory import write_text

        write_text(path, json.dumps(value, indent=1, sort_keys=True) + "\n")


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


if __name__ == "__main__":
    main()
