"""``bipline diff``: two measured models, pair by pair."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bipline.face import options
from bipline.face.models import STATE
from bipline.face.output import log_file
from bipline.face.promotion import State
from bipline.face.storing import Registry

MEASURED = (
    "a package (a directory, models:/NAME@ALIAS, s3:// or hf:), or the JSON of `bipline evaluate`"
)


def diff(
    before: Annotated[str, typer.Argument(metavar="A", help=MEASURED, show_default=False)],
    after: Annotated[str, typer.Argument(metavar="B", help=MEASURED, show_default=False)],
    registry: Registry = None,
    json_file: options.JsonFile = None,
    state: State = None,
) -> None:
    """What two measured models differ in, with 95 % intervals.

    It is B less A. Both were measured under one protocol; a difference inside its interval is told
    as none.
    """
    from bipline.face import api
    from bipline.face.console import working
    from bipline.face.tables import print_difference

    with working(log := log_file(state or STATE, "diff")) as console:
        found = api.diff(before, after, registry=registry, json_file=json_file, state=state)
        print_difference(console, found, _names(before, after), log)


def _names(before: str, after: str) -> tuple[str, str]:
    """What the table calls the two: the last part of each, or all where those are alike."""
    one, other = Path(before).name, Path(after).name
    return (one, other) if one != other else (before, after)
