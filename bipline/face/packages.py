"""``bipline export``: a model in the format of another engine."""

from __future__ import annotations

from typing import Annotated, Any

from bipline.face import options
from bipline.face.models import STATE
from bipline.face.options import WHAT, named_sources, option, with_settings
from bipline.face.output import log_file
from bipline.settings.gguf import GgufSettings
from bipline.settings.onnx import OnnxSettings


@with_settings(GgufSettings, OnnxSettings)
def export(
    model: options.Model,
    out: options.Out,
    format_: Annotated[
        str, option("gguf, for llama.cpp; onnx, for ONNX Runtime", WHAT, "--format")
    ] = "gguf",
    text: Annotated[
        list[str] | None,
        option("NAME=FILE to measure the file's own perplexity on; may be repeated", WHAT),
    ] = None,
    json_file: options.JsonFile = None,
    state: options.State = STATE,
    **settings: Any,
) -> None:
    """Write a model in another format, verified by the engine it is for.

    What the engine cannot hold is refused before any work.
    """
    from bipline.face import api
    from bipline.face.console import working

    with working(log := log_file(state, "export")) as console:
        record = api.export(
            model, out, format=format_, texts=named_sources(text), json_file=json_file, state=state,
            **settings,
        )  # fmt: skip
        line = f"{out}: {record.format} {record.type}, architecture {record.architecture}, "
        line += f"{record.parameters:,} parameters, {record.file_bytes / 1e6:.2f} MB"
        console.print(line, soft_wrap=True)
        console.print(f"log: {log}", soft_wrap=True)
