"""``bipline promote``, ``rollback`` and ``history``: commands on a registry."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bipline.face import options
from bipline.face.models import STATE
from bipline.face.options import OUTPUT, WHAT, option
from bipline.face.output import log_file

Registry = Annotated[
    str | None,
    option(
        "address of the registry: MLflow's, s3://bucket/prefix, sagemaker://bucket/prefix or "
        "hf:OWNER; default: --state's, MLFLOW_TRACKING_URI, or .bipline's",
        WHAT,
    ),
]
State = Annotated[Path | None, option("state folder whose registry is meant; logs too", OUTPUT)]
By = Annotated[str | None, option("who answers for it", WHAT)]


def promote(
    model: Annotated[
        str, typer.Argument(help="NAME, NAME@ALIAS or NAME/VERSION; NAME alone is NAME@candidate")
    ],
    to: Annotated[str, option("alias that it is to get", WHAT)],
    gate: Annotated[
        str | None, option("what decides: strict, lenient, or a YAML file; needed", WHAT)
    ] = None,
    override: Annotated[
        bool, option("promote what the gate refuses; needs --reason and --by", WHAT, "--override")
    ] = False,
    reason: Annotated[str | None, option("why, for ever in verdict and journal", WHAT)] = None,
    by: By = None,
    registry: Registry = None,
    also: Annotated[
        list[str] | None,
        option("registry that gets the package too, and promotes it; may be repeated", WHAT),
    ] = None,
    json_file: options.JsonFile = None,
    state: State = None,
) -> None:
    """Give a registered version an alias, where a gate lets it through.

    The gate judges by the records in the version's package, beside the champion's. Every file is
    hashed again before anything points at it.
    """
    from bipline.delivery.registries.promotion import GateRefused
    from bipline.face import api, tables
    from bipline.face.console import working
    from bipline.stages.other_registries import raise_first

    with working(log_file(state or STATE, "promote")) as console:
        try:
            done = api.promote(
                model, to, gate=gate, override=override, reason=reason, by=by, registry=registry,
                also=also or (), json_file=json_file, state=state,
            )  # fmt: skip
        except GateRefused as refusal:
            tables.print_verdict(console, refusal.verdict)
            raise
        tables.print_promoted(console, done)
        raise_first(done.also)


def rollback(
    model: Annotated[str, typer.Argument(help="NAME@ALIAS")],
    expected: Annotated[
        str | None,
        option("version to be rolled back; refused where another is served", WHAT, "--from"),
    ] = None,
    reason: Annotated[str | None, option("why, for ever in the journal", WHAT)] = None,
    by: By = None,
    registry: Registry = None,
    json_file: options.JsonFile = None,
    state: State = None,
) -> None:
    """Give an alias back to the version before.

    That version is hashed again first. No gate is asked: it has passed one.
    """
    from bipline.face import api, tables
    from bipline.face.console import working

    with working(log_file(state or STATE, "rollback")) as console:
        done = api.rollback(
            model, expected=expected, reason=reason, by=by, registry=registry,
            json_file=json_file, state=state,
        )  # fmt: skip
        tables.print_promoted(console, done)


def history(
    name: Annotated[str, typer.Argument(help="name of a registered model")],
    registry: Registry = None,
    json_file: options.JsonFile = None,
    state: State = None,
) -> None:
    """Who moved which alias of a registered model, when, and why."""
    from bipline.face import api, tables
    from bipline.face.console import working

    with working(log_file(state or STATE, "history")) as console:
        tables.print_history(
            console, api.history(name, registry=registry, json_file=json_file, state=state)
        )
