"""Compensate: a plan becomes the plan as it is carried out, and the corrections it needs."""

from __future__ import annotations

from pathlib import Path

from bipline.base.errors import InvalidInput
from bipline.base.progress import note
from bipline.compression.compensation import realise as core
from bipline.compression.compensation.checks import (
    check_compensation_settings,
    compensation_options,
    needed_bytes,
)
from bipline.compression.corrections import KIND, hold_to_plan, open_corrections
from bipline.model.checkpoint import Checkpoint
from bipline.model.memory import gigabytes
from bipline.settings.line import CompensateSettings, LineSettings
from bipline.stages.calibrate import samples_of, windows_of
from bipline.stages.stage import Context, Stage
from bipline.storage.directory import DirectoryWriter, copy_directory, occupied
from bipline.storage.store import Handle
from bipline.values.fitted_text import write_fitted
from bipline.values.plan import PruningPlan
from bipline.values.resolution import ResolvedModel

STAGE = Stage("compensate", KIND, ("bipline.compression.compensation.realise",))


def compensate(
    context: Context,
    model: ResolvedModel,
    calibration: Handle | None,
    plan: PruningPlan,
    settings: CompensateSettings,
) -> tuple[PruningPlan, Handle | None]:
    """Correct the weights that stay, block by block; killed, it goes on after the last block.

    Without compensation the plan is what is carried out, and there are no corrections.
    """
    if settings.chosen == "none":
        return plan, None
    if calibration is None:
        raise InvalidInput(f"compensation {settings.chosen} needs --calibration FILE or hf:NAME")
    options = compensation_options(settings).to_json_value()
    inputs = {"model": model.identity, "windows": calibration.digest, "plan": plan.digest}
    asked = {"compensation": settings.chosen, "options": options}

    def produce(writer: DirectoryWriter, work: Path) -> None:
        checkpoint = context.opened(model)
        windows = windows_of(context, checkpoint, calibration)
        core.realise(checkpoint, plan, windows, settings, writer, work)
        write_fitted(writer.path, [context.store.open(calibration)])

    if has_corrections(settings):
        found = plan.digest, calibration.info["token_digest"], settings.chosen, options
        return _kept(Path(str(settings.corrections)), found)
    corrections = STAGE.run(context, STAGE.key(inputs, asked, context.computing), produce)
    place = context.store.open(corrections)
    if settings.corrections:
        copy_directory(place, Path(settings.corrections))
    return open_corrections(place)[0], corrections


def has_corrections(settings: CompensateSettings) -> bool:
    """Whether corrections that an earlier run wrote lie where the settings say."""
    return settings.corrections is not None and occupied(Path(settings.corrections))


def given_corrections(
    plan: PruningPlan | None, settings: CompensateSettings
) -> tuple[PruningPlan, Handle | None]:
    """The plan of the corrections that were given; it must be the one that was given beside them.

    Raises InvalidInput where a plan needs corrections that are not there.
    """
    if settings.chosen != "none":
        raise InvalidInput("the plan was compensated already; leave --compensation out")
    if not has_corrections(settings):
        if plan is None:
            raise InvalidInput(f"{settings.corrections}: holds no corrections")
        hold_to_plan(plan, None)
        return plan, None
    place = Path(str(settings.corrections))
    realised, _ = open_corrections(place)
    if plan and plan.digest != realised.digest:
        raise InvalidInput(
            f"{place} holds corrections of another plan ({realised.digest[:12]}) than the one "
            f"that was given ({plan.digest[:12]})"
        )
    note(f"corrections come from {place}; no block is corrected again")
    return realised, Handle.to_directory(place)


def _kept(
    place: Path, asked: tuple[str, str, str, dict[str, object]]
) -> tuple[PruningPlan, Handle]:
    """Corrections that lie there already, where they are what this run would write.

    So they are when a run was killed after them; anything else is refused.
    """
    realised, _ = open_corrections(place)
    record = realised.compensated
    if record is None or asked != (
        record.asked_plan, record.calibration_digest, realised.compensation, record.options,
    ):  # fmt: skip
        raise InvalidInput(
            f"{place}: holds corrections of other inputs or settings; give an empty directory, "
            "or leave --ratio out to apply what is there"
        )
    note(f"corrections come from {place}; no block is corrected again")
    return realised, Handle.to_directory(place)


def check(settings: LineSettings, checkpoint: Checkpoint | None, thorough: bool) -> None:
    """Raise InvalidInput for options, windows or memory with which it cannot be done."""
    compensation_options(settings.compensate)
    if checkpoint is not None and settings.compensate.chosen != "none":
        check_compensation_settings(
            checkpoint, settings.compensate, *_windows(settings, checkpoint),
            settings.compute.max_memory,
        )  # fmt: skip


def tell(settings: LineSettings, checkpoint: Checkpoint | None) -> list[tuple[str, str]]:
    """What corrects, on which inputs, and the memory that takes."""
    section = settings.compensate
    if section.chosen == "none":
        return [("compensate", "none")]
    sequential = compensation_options(section).sequential
    text = f"{section.chosen}, " + (
        "in order, on the pruned stream" if sequential else "on dense inputs"
    )
    if checkpoint is not None:
        need = needed_bytes(checkpoint, section, *_windows(settings, checkpoint))
        text += f"; at most {gigabytes(need)} for generated text or a block's moments"
    return [("compensate", text)]


def _windows(settings: LineSettings, checkpoint: Checkpoint) -> tuple[int, int]:
    section = settings.calibrate
    return samples_of(checkpoint, section, settings.compensate), section.seqlen
