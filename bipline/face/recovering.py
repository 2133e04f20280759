"""``import bipline``: the function of ``bipline recover``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from bipline.base.errors import InvalidInput, Refused
from bipline.face import named_places
from bipline.face.keywords import Place, given_values
from bipline.face.output import write_json
from bipline.settings.line import ComputeSettings
from bipline.settings.loading import validated
from bipline.settings.recipes import RECIPES
from bipline.settings.stack import USUAL_STATE

if TYPE_CHECKING:
    from bipline.values.recovery import RecoveryRecord

STATE = USUAL_STATE
COMPUTE = ("device", "dtype")


def recover(
    model: Place,
    out: Place,
    *,
    text: Place,
    judge: Place,
    teacher: Place | None = None,
    recipe: str = "lora",
    adapter_out: Place | None = None,
    json_file: Place | None = None,
    state: Place = STATE,
    **settings: Any,
) -> RecoveryRecord | None:
    """Train a model on ``text`` into the directory ``out``, kept where ``judge`` says it helps.

    ``settings`` are the fields of the recipe's class in :mod:`bipline.settings.recipes`, and
    ``device`` and ``dtype``. None for a process of torchrun that only helps. Raises Refused, with
    nothing in ``out``, where the training fails or does not help.
    """
    from bipline.stages.beside_recovery import RecoveryPlaces, recover_to

    if recipe not in RECIPES:
        raise InvalidInput(f"recipe {recipe!r} is unknown; known: {', '.join(RECIPES)}")
    given = given_values(settings)
    compute = validated(ComputeSettings, {n: given.pop(n) for n in COMPUTE if n in given})
    if compute.dtype == "auto":
        raise InvalidInput("--dtype 'auto' is for calibration windows; give the dtype to train in")
    chosen = validated(RECIPES[recipe], given)
    sources = {"--teacher": teacher, "--text": text, "--judge": judge}
    written = {"--out": out, "--adapter-out": adapter_out}
    named_places.check_recover(model, sources, written, json_file=json_file, state=state)
    places = RecoveryPlaces(
        str(model), str(text), str(judge), Path(out), None if teacher is None else str(teacher),
        Path(adapter_out) if adapter_out else None, Path(state) / "downloads",
    )  # fmt: skip
    record = recover_to(places, chosen, compute)
    if record is None:
        return None
    write_json(json_file, "recover", record.model_dump(mode="json"))
    if not record.accepted:
        raise Refused(f"recovery refused, nothing is written to {out}: {record.reason}")
    return record
