"""``bipline audit``: from a served model back to the model, texts and code it was made from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bipline.base.errors import InvalidInput, Refused
from bipline.base.printable import printable
from bipline.face import options
from bipline.face.audited import only_for_packages, registered_name
from bipline.face.models import STATE
from bipline.face.options import MACHINE, OUTPUT, WHAT, option
from bipline.face.promotion import Registry

if TYPE_CHECKING:
    from bipline.values.audit import Audit, RegistryAudit, Status

Source = Annotated[
    str | None,
    typer.Argument(
        help="a package's directory, s3://bucket/prefix, hf:org/name, models:/NAME@ALIAS, or "
        "models:/NAME for all that its aliases point at",
        show_default=False,
    ),
]
All = Annotated[
    bool, option("every version of the registry that an alias points at", WHAT, "--all")
]
Key = Annotated[Path | None, option("public key (PEM) that is trusted", WHAT)]
Trust = Annotated[
    Path | None, option("YAML file: whose signatures count for what, who may promote", WHAT)
]
Model = Annotated[
    str | None, option("the dense model, where it lies now: every file is hashed again", WHAT)
]
Replay = Annotated[
    bool, option("prune --model again by the package's plan, and compare the tensors", WHAT)
]
Corrections = Annotated[
    Path | None, option("the run's corrections, for --replay of a compensated plan", WHAT)
]
Html = Annotated[Path | None, option("write a page to be read here", OUTPUT, "--html")]
State = Annotated[
    Path | None, option("state folder whose registry and ZenML are asked; logs too", OUTPUT)
]
Stack = Annotated[str | None, option("registered ZenML stack that is asked", MACHINE)]


def audit(
    source: Source = None,
    all_: All = False,
    key: Key = None,
    trust: Trust = None,
    model: Model = None,
    text: options.Text = None,
    replay: Replay = False,
    corrections: Corrections = None,
    registry: Registry = None,
    json_file: options.JsonFile = None,
    html_file: Html = None,
    state: State = None,
    stack: Stack = None,
) -> None:
    """From the bytes that are served back to their source: what holds, differs, is not known.

    Exit code 1 where anything differs.
    """
    from bipline.face import audited
    from bipline.face.console import working
    from bipline.face.output import log_file

    if (source is not None) == all_:
        raise InvalidInput("give a package to audit, or --all for what a registry serves")
    name = registered_name(source) if source else None
    shared: dict[str, Any] = {
        "key": key, "trust": trust, "registry": registry, "json_file": json_file,
        "html_file": html_file, "state": state, "stack": stack,
    }  # fmt: skip
    if all_ or name is not None:
        flags = {"--model": model, "--text": text, "--replay": replay, "--corrections": corrections}
        only_for_packages(flags)
        with working(log_file(state or STATE, "audit")):
            whole = audited.audit_registry(name, **shared)
        _print_registry(whole)
        if count := len(whole.differences):
            raise Refused(f"{count} of {len(whole.versions)} versions differ")
        return
    texts = options.named_sources(text)
    with working(log_file(state or STATE, "audit")):
        found = audited.audit(
            str(source), model=model, text=texts, replay=replay, corrections=corrections, **shared
        )
    _print(found)
    if found.differences:
        raise Refused(f"{source}: {len(found.differences)} findings differ")


def _print(found: Audit) -> None:
    """Every finding on a line, what follows from it below."""
    width = max((len(each.about) for each in found.findings), default=0)
    for each in found.findings:
        typer.echo(printable(f"{each.status:<8} {each.about:<{width}}  {each.said}"))
        if each.consequence:
            typer.echo(printable(f"{'':<9}{'':<{width}}  so {each.consequence}"))
    typer.echo(_counted(found.counts))


def _print_registry(found: RegistryAudit) -> None:
    """Every version in a line, and below it what differs."""
    for each in found.versions:
        name = f"{each.model} {each.version} ({', '.join(each.aliases)})"
        typer.echo(printable(f"{name}: {_counted(each.audit.counts)}"))
        for finding in each.audit.differences:
            typer.echo(printable(f"  differs  {finding.about}  {finding.said}"))
            typer.echo(printable(f"           so {finding.consequence}"))


def _counted(counts: Mapping[Status, int]) -> str:
    return ", ".join(f"{count} {status}" for status, count in counts.items())
