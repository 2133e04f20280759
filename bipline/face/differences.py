"""``bipline diff``: two measured models, pair by pair."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bipline.face import options
from bipline.face.models import STATE
from bipline.face.output import log_file

MEASURED = "a package, or the JSON of `bipline evaluate`"


def diff(
    before: Annotated[Path, typer.Argument(metavar="A", help=MEASURED, show_default=False)],
    after: Annotated[Path, typer.Argument(metavar="B", help=MEASURED, show_default=False)],
    json_file: options.JsonFile = None,
    state: options.State = STATE,
) -> None:
    """What two measured models differ in, with 95 % intervals.

    It is B less A. Both were measured under one protocol; a difference inside its interval is told
    as none.
    """
    from bipline.face import api
    from bipline.face.console import working
    from bipline.face.tables import print_difference

    with working(log := log_file(state, "diff")) as console:
        found = api.diff(before, after, json_file=json_file, state=state)
        print_difference(console, found, (before.name, after.name), log)
