"""Precision: what dtype ``auto`` stands for on this model, these windows and this machine.

It is settled before the keys of the stages that run windows are made, and kept in the Store like
what they make: who comes later, a killed run, a row of a comparison, a step in another process,
finds the choice and makes the same keys and bytes.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from bipline.base.progress import note
from bipline.compression import precision as core
from bipline.compression.calibrate import load_calibration
from bipline.compression.computing import Computing
from bipline.compression.criteria import module_name
from bipline.compression.windows import Windows
from bipline.stages.stage import Context, Stage
from bipline.storage.store import Handle
from bipline.values.precision import DtypeChoice
from bipline.values.resolution import ResolvedModel

STAGE = Stage("precision", "dtype", ("bipline.compression.precision", module_name(core.CRITERION)))
AUTO = "auto"
DTYPES = (core.WIDE, core.NARROW)


def settled(context: Context, model: ResolvedModel, calibration: Handle | None) -> Context:
    """The context with its dtype named; the same one where it is.

    Where no window is run nothing is computed in it, and it is float32. Processes of torchrun
    take what the first of them found; all must come here.
    """
    compute = context.compute
    if compute.dtype != AUTO:
        return context
    if calibration is None:
        return replace(context, compute=compute.model_copy(update={"dtype": core.WIDE}))
    choice, workers = None, context.workers
    if workers.leads:
        choice = _chosen(context, model, calibration)
    number = workers.least(DTYPES.index(choice.dtype) if choice else len(DTYPES))
    named = compute.model_copy(update={"dtype": DTYPES[number]})
    return replace(context, compute=named, dtype_choice=choice)


def _chosen(context: Context, model: ResolvedModel, calibration: Handle) -> DtypeChoice:
    def produce(work: Path) -> DtypeChoice:
        drawn = load_calibration(context.store.open(calibration))
        asked = context.compute
        computing = Computing(
            device=context.device, micro_batch=asked.micro_batch, max_memory=asked.max_memory
        )
        windows = Windows(drawn.token_ids, drawn.digest, computing)
        return core.choose_dtype(context.opened(model), windows)

    inputs = {"model": model.identity, "windows": calibration.digest}
    key = STAGE.key(inputs, None, context.computing)
    choice = STAGE.value(context, key, DtypeChoice, produce)
    note(choice.reason)
    return choice
