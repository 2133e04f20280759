"""The command line. Every command parses, calls one function of the API, and prints.

Exit codes: 0 done, 1 refused or a check failed, 2 bad input, 3 environment (disk full, server
down: a retry may help), 130 interrupted. Heavy imports happen inside the commands, so that
``bipline --help`` answers at once.
"""

from __future__ import annotations

import errno
import json
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from bipline import __version__
from bipline.base.addresses import without_secrets
from bipline.base.errors import BiplineError, InvalidInput
from bipline.base.extras import check_hub_address
from bipline.base.printable import printable
from bipline.face.output import log_file
from bipline.face.streams import standard_streams

# Where a command's function lies, and its line in the list of commands: a module whose command is
# not asked for is not imported.
COMMANDS = {
    "demo": ("runs", "Run the main job on the embedded model, on a local ZenML stack."),
    "compress": (
        "runs", "Run the compress pipeline: from a model and its texts to a registered package.",
    ),
    "verify": ("verifying", "Re-hash every file of a directory; say what vouches for that."),
    "sign": ("verifying", "Sign the manifest of a directory, and that of its lineage."),
    "sweep": (
        "runs",
        "Run the sweep pipeline: score once per criterion, measure every row, pick the best.",
    ),
    "runs": (
        "ran",
        "What ran on a stack: how it ended, where it failed, its log, and how to go on.",
    ),
    "watch": (
        "watching",
        "Watch for new releases of models; each starts its compress run exactly once.",
    ),
    "prune": (
        "models",
        "Prune a model block by block, without ZenML or MLflow; killed, it goes on from OUT.work.",
    ),
    "models": (
        "families",
        "Which families can be pruned, what of them, and which exports hold it.",
    ),
    "evaluate": ("models", "Perplexity, zero-shot accuracy and speed of a model."),
    "compare": (
        "models",
        "Measure many ways to prune, dense model first, and show them side by side.",
    ),
    "diff": (
        "differences", "What two measured models differ in, with 95 % intervals.",
    ),
    "speed": ("speeds", "Prefill and decode speed, taking turns with a dense model."),
    "recover": ("recovery", "Train a pruned model to win quality back, kept only where it helps."),
    "promote": ("promotion", "Give a registered version an alias, where a gate lets it through."),
    "rollback": ("promotion", "Give an alias back to the version before."),
    "audit": (
        "auditing",
        "From the bytes that are served back to their source: what holds, differs, is not known.",
    ),
    "history": ("promotion", "Who moved which alias of a registered model, when, and why."),
    "doctor": (
        "stacks", "Ask every component of a stack one thing; say what is wrong and what mends it.",
    ),
    "export": ("packages", "Write a model in another format, verified by the engine it is for."),
}  # fmt: skip
# Commands of two words: where they lie, their line, and their functions.
GROUPS = {
    "store": (
        "storing", "What lies in the Store of pipeline runs.", {"list": "list_", "prune": "prune"},
    ),
    "schedule": (
        "scheduling", "Schedules of the stack's orchestrator; `compress --schedule` makes them.",
        {"list": "list_", "remove": "remove"},
    ),
    "stack": ("stacks", "Stacks: where pipelines run.", {"apply": "apply"}),
}  # fmt: skip
INTERRUPTED = 130
# What an operating system says of a path that can never be right.
WRONG_PATHS = {errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR}


def application(arguments: Sequence[str] = tuple(COMMANDS)) -> typer.Typer:
    """The command line, with those of its larger commands whole that the arguments name."""
    app = typer.Typer(
        add_completion=False,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        help="Structured pruning of large language models with LLM-BIP.",
    )
    app.callback()(_options)
    for name, (module, line) in COMMANDS.items():
        if name in arguments:
            app.command(name)(getattr(import_module(f"bipline.face.{module}"), name))
        else:
            app.command(name, help=line)(_not_asked_for)
    config = typer.Typer(no_args_is_help=True, help="What a configuration file may hold.")
    config.command("schema")(schema)
    config.callback()(lambda: None)
    app.add_typer(config, name="config")
    for name, (module, line, functions) in GROUPS.items():
        app.add_typer(_group(module, line, functions, name in arguments), name=name)
    return app


def _group(module: str, line: str, functions: dict[str, str], asked_for: bool) -> typer.Typer:
    """Commands under a common name, whole where they are asked for."""
    group = typer.Typer(no_args_is_help=True, help=line)
    for name, function in functions.items():
        found = getattr(import_module(f"bipline.face.{module}"), function) if asked_for else None
        group.command(name)(found or _not_asked_for)
    group.callback()(lambda: None)  # else a group of one command would be that command
    return group


def _not_asked_for() -> None:
    pass


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"bipline {__version__}")
        raise typer.Exit


def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    pass


def schema(
    of: Annotated[str, typer.Argument(help="compress, sweep or watch")] = "compress",
) -> None:
    """Print the JSON schema of a compress, a sweep or a watch configuration."""
    from bipline.settings.loading import schema_of

    typer.echo(json.dumps(schema_of(of), indent=2))


def main() -> None:
    """Run the command line; every error is one line and an exit code."""
    with standard_streams():
        _run()


def _run() -> None:
    try:
        check_hub_address()
        # Typer gives an interruption as a value here, and help as zero.
        if application(sys.argv)(standalone_mode=False) == INTERRUPTED:
            _fail("interrupted; nothing was left half written", INTERRUPTED)
    except BiplineError as error:
        _fail(str(error), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        _fail("interrupted; nothing was left half written", INTERRUPTED)
    except OSError as error:
        code = InvalidInput.exit_code if error.errno in WRONG_PATHS else 3
        _fail(f"{error.strerror or error}: {error.filename or ''}".rstrip(": "), code)
    except MemoryError:
        _fail("out of memory; lower --max-memory or --micro-batch, or free some", 3)
    except BaseException as error:
        # A panic of a library in Rust is no Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        _fail_unexpectedly(error)


def _fail(message: str, code: int) -> None:
    shown = printable(" ".join(without_secrets(message).split()))
    typer.echo(f"error: {shown}", err=True)
    sys.exit(code)


def _fail_unexpectedly(error: BaseException) -> None:
    """Errors of the command line's own parser, and faults of this program."""
    if hasattr(error, "exit_code") and hasattr(error, "format_message"):
        message = error.format_message()
        _fail(message, 2) if message else sys.exit(2)  # without a command, help was printed
    trace = without_secrets(traceback.format_exc())
    log = log_file(Path(".bipline"), "fault")
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(trace, encoding="utf-8", errors="backslashreplace")
        place = f"its trace is in {log}"
    except OSError as failure:
        place = f"its trace is above, as {log} cannot be written ({failure.strerror})"
        typer.echo(trace, err=True)
    _fail(f"{type(error).__name__}: {error}; this is a fault of bipline, {place}", 1)
