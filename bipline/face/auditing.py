"""``bipline audit``: from a served model back to the model, texts and code it was made from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bipline.base.printable import printable
from bipline.face import options
from bipline.face.models import STATE
from bipline.face.options import WHAT, option
from bipline.face.promotion import Registry, State

if TYPE_CHECKING:
    from bipline.values.audit import Audit

Source = Annotated[
    str, typer.Argument(help="a package's directory, or models:/NAME@ALIAS", show_default=False)
]
Key = Annotated[Path | None, option("public key (PEM) that is trusted", WHAT)]
Model = Annotated[
    str | None, option("the dense model, where it lies now: every file is hashed again", WHAT)
]
Replay = Annotated[
    bool, option("prune --model again by the package's plan, and compare the tensors", WHAT)
]
Corrections = Annotated[
    Path | None, option("the run's corrections, for --replay of a compensated plan", WHAT)
]


def audit(
    source: Source,
    key: Key = None,
    model: Model = None,
    text: options.Text = None,
    replay: Replay = False,
    corrections: Corrections = None,
    registry: Registry = None,
    json_file: options.JsonFile = None,
    state: State = None,
) -> None:
    """From the bytes that are served back to their source: what holds, differs, is not known.

    Exit code 1 where anything differs.
    """
    from bipline.audit.audit import REGISTRY, Request
    from bipline.audit.audit import audit as run_audit
    from bipline.base.errors import Refused
    from bipline.face import named_places
    from bipline.face.console import working
    from bipline.face.output import log_file, write_json
    from bipline.stages.promote import registry_address

    texts = options.named_sources(text)
    named_places.check_audit(source, key, texts, json_file, state or STATE)
    asks = source.startswith(REGISTRY)
    address = registry_address(registry, state, STATE) if asks else None
    request = Request(
        source, key, address, model, texts, corrections, replay, (state or STATE) / "downloads"
    )
    with working(log_file(state or STATE, "audit")):
        found = run_audit(request)
    write_json(json_file, "audit", found.model_dump(mode="json"))
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
    counts = dict.fromkeys(("holds", "differs", "unknown"), 0)
    for each in found.findings:
        counts[each.status] += 1
    typer.echo(", ".join(f"{count} {status}" for status, count in counts.items()))
