"""``bipline speed``: models that take turns, here or as an engine serves them."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from bipline.face import options
from bipline.face.models import STATE
from bipline.face.options import MACHINE, WHAT, option, with_settings
from bipline.face.output import log_file
from bipline.settings.protocol import Protocol

SOURCE = "model directory, .gguf file for llama.cpp"
OTHER_FIELDS = tuple(
    name for name in Protocol.model_fields if not name.startswith("speed_") and name != "dtype"
)


@with_settings(Protocol, leave_out=OTHER_FIELDS)
def speed(
    model: Annotated[str | None, typer.Argument(help=SOURCE, show_default=False)] = None,
    baseline: Annotated[
        str | None, option(f"the dense model: {SOURCE}, or an address", WHAT)
    ] = None,
    endpoint: Annotated[
        str | None, option("address of a server to time in place of MODEL, such as vLLM's", WHAT)
    ] = None,
    device: Annotated[str | None, option("auto, cpu, cuda or cuda:N", MACHINE)] = None,
    json_file: options.JsonFile = None,
    state: options.State = STATE,
    **settings: Any,
) -> None:
    """Prefill and decode speed, taking turns with a dense model."""
    from bipline.base.errors import InvalidInput
    from bipline.face import api
    from bipline.face.console import working
    from bipline.face.tables import print_speeds

    if (model is None) == (endpoint is None):
        raise InvalidInput("give MODEL or --endpoint URL, one of the two")
    with working(log := log_file(state, "speed")) as console:
        found = api.speed(
            model or str(endpoint), baseline=baseline, device=device, json_file=json_file,
            state=state, **settings,
        )  # fmt: skip
        print_speeds(console, found, log)
