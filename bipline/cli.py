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


def _bytes(value: str | None) -> int | None:
    """A number of bytes, with or without a unit. Raises InvalidInput for anything else."""
    if value is None:
        return None
    from pydantic import ByteSize, TypeAdapter, ValidationError

    try:
        return int(TypeAdapter(ByteSize).validate_python(value))
    except ValidationError:
        raise InvalidInput(f"{value!r} is not a size; write bytes, or 2.5GB or 2GiB") from None


def _options(given: list[str] | None) -> dict[str, str]:
    """KEY=VALUE pairs as a mapping. Raises InvalidInput for anything else."""
    pairs = [text.partition("=") for text in given or ()]
    for key, equals, value in pairs:
        if not (key and equals and value):
            raise InvalidInput(f"option {key + equals + value!r}: write KEY=VALUE")
    return {key: value for key, _, value in pairs}


ModelArgument = Annotated[str, typer.Argument(help="model directory, or s3://bucket/prefix")]
DeviceOption = Annotated[
    str, typer.Option(help="auto (a GPU where there is one), cpu, cuda or cuda:N")
]
MemoryOption = Annotated[
    str | None,
    typer.Option(help="most memory to use, such as 2.5GB [default: what is free]"),
]
JsonOption = Annotated[
    Path | None,
    typer.Option("--json", help="write the result as JSON here", callback=_in_a_folder),
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="section.field=value; may be repeated")
]
OptionsOption = Annotated[
    list[str] | None,
    typer.Option(help="KEY=VALUE, see docs/methods; may be repeated"),
]
StateOption = Annotated[Path, typer.Option(help="folder for logs and state")]
CRITERIA = "llm-bip-glu, llm-bip, llm-bip-exact, wanda-sp, magnitude or random"
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
    criterion: Annotated[str, typer.Option(help=CRITERIA)] = "llm-bip-glu",
    criterion_option: OptionsOption = None,
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
    work: Annotated[
        Path | None, typer.Option(help="where a killed run goes on from [default: OUT.work]")
    ] = None,
    dtype: Annotated[str, typer.Option(help="compute dtype: float32 or bfloat16")] = "float32",
    device: DeviceOption = "auto",
    micro_batch: Annotated[
        int | None, typer.Option(help="windows run together, 1 to 16 [default: by their length]")
    ] = None,
    max_memory: MemoryOption = None,
    shard_size: Annotated[str, typer.Option(help="largest shard, in bytes or as 5GB")] = "5GB",
    json_file: JsonOption = None,
    state: StateOption = DEFAULT_STATE,
) -> None:
    """Prune a model block by block, without ZenML or MLflow; killed, it goes on from OUT.work."""
    from bipline.console import working
    from bipline.prune_job import PruneRequest, prune_job
    from bipline.tables import print_pruned

    request = PruneRequest(
        model=model, out=out, ratio=ratio, ratio_of=ratio_of, criterion=criterion,
        criterion_options=_options(criterion_option),
        calibration=calibration, samples=samples, seqlen=seqlen, seed=seed,
        ffn_multiple=ffn_multiple, plan=plan, plan_out=plan_out, statistics=statistics, work=work,
        dtype=dtype, device=device, micro_batch=micro_batch, max_memory=_bytes(max_memory),
        shard_bytes=_bytes(shard_size) or 0, downloads=state / "downloads",
    )  # fmt: skip
    with working(log := _log(state, "prune")) as console:
        result = prune_job(request)
        if result is None:  # a worker of torchrun; the first one tells
            return
        print_pruned(console, result, log)
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
    baseline: Annotated[str | None, typer.Option(help="model to stand beside")] = None,
    device: DeviceOption = "auto",
    max_memory: MemoryOption = None,
    json_file: JsonOption = None,
    state: StateOption = DEFAULT_STATE,
) -> None:
    """Perplexity, zero-shot accuracy and speed of a local model directory."""
    from bipline.console import working
    from bipline.evaluate_job import EvaluateRequest, evaluate_job
    from bipline.tables import evaluation_table

    request = EvaluateRequest(
        model=model, baseline=baseline, texts=tuple(text or ()), tasks=tasks,
        task_data=task_data, seqlen=seqlen, bos=bos, dtype=dtype, batch_size=batch_size,
        speed=speed, device=device, max_memory=_bytes(max_memory),
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
    except MemoryError:
        _fail("out of memory; lower --max-memory or --micro-batch, or free some", 3)
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
