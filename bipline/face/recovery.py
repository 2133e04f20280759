"""``bipline recover``: training after pruning."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from bipline.face import options
from bipline.face.models import STATE
from bipline.face.options import WHAT, option, with_settings
from bipline.face.output import log_file
from bipline.settings.line import ComputeSettings
from bipline.settings.recipes import RECIPES


@with_settings(
    *RECIPES.values(), ComputeSettings,
    leave_out=("kind", "max_memory", "micro_batch", "processes"),
)  # fmt: skip
def recover(
    model: options.Model,
    out: options.Out,
    text: Annotated[str, option("text to train on: FILE, chat:FILE or hf:NAME?split=...", WHAT)],
    judge: Annotated[str, option("text that decides, neither trained on nor reported", WHAT)],
    teacher: Annotated[
        str | None, option("dense model; distill and ba-lora learn from it", WHAT)
    ] = None,
    recipe: Annotated[str, option("lora, distill, ba-lora or full", WHAT)] = "lora",
    adapter_out: Annotated[Path | None, option("also write the adapter here")] = None,
    json_file: options.JsonFile = None,
    state: options.State = STATE,
    **settings: Any,
) -> None:
    """Train a pruned model to win quality back, kept only where it helps.

    Killed, it goes on from OUT.work. Defaults are those of lora; ba-lora has its own for rank,
    alpha, dropout, learning-rate and warmup.
    """
    from bipline.face import api
    from bipline.face.console import working

    with working(log := log_file(state, "recover")) as console:
        record = api.recover(
            model, out, text=text, judge=judge, teacher=teacher, recipe=recipe,
            adapter_out=adapter_out, json_file=json_file, state=state, **settings,
        )  # fmt: skip
        if record is None:  # a worker of torchrun; the first one tells
            return
        console.print(f"{out}: {record.reason}; {record.tokens:,} tokens", soft_wrap=True)
        console.print(f"log: {log}", soft_wrap=True)
