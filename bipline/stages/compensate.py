"""Compensate: a plan becomes the plan as it is carried out, and the corrections it needs."""

from __future__ import annotations

from pathlib import Path

from bipline.base.errors import InvalidInput
from bipline.base.progress import note
from bipline.compression.compensation import checks
from bipline.compression.compensation import realise as core
from bipline.compression.compensation.drawn_windows import WEIGHED
from bipline.compression.compensation.options import CompensationOptions
from bipline.compression.corrections import KIND, hold_to_plan, open_corrections
from bipline.model.checkpoint import Checkpoint
from bipline.model.memory import gigabytes
from bipline.settings.line import CompensateSettings, LineSettings
from bipline.stages.calibrate import needed, samples_of, windows_of
from bipline.stages.stage import Context, Lines, Stage
from bipline.storage.directory import DirectoryWriter, copy_directory, occupied
from bipline.storage.store import Handle
from bipline.values.compensation import Compensation
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

    Without compensation the plan is what is carried out, and there are no corrections. Those that
    lie where they are to be written are taken if this run would write them: it was killed after.
    """
    name = settings.chosen
    if name == "none":
        return plan, None
    windows = needed(calibration, f"compensation {name}")
    options = checks.compensation_options(settings).to_json_value()
    if has_corrections(settings):
        realised, corrections = _lying(settings)
        record, drawn = realised.compensated, windows.info["token_digest"]
        if record is None or (plan.digest, drawn, name, options) != (
            record.asked_plan, record.calibration_digest, realised.compensation, record.options,
        ):  # fmt: skip
            raise InvalidInput(
                f"{settings.corrections}: holds corrections of other inputs or settings; give an "
                "empty directory, or leave --ratio out to apply what is there"
            )
        note(f"corrections come from {settings.corrections}; no block is corrected again")
        return realised, corrections

    def produce(writer: DirectoryWriter, work: Path) -> None:
        checkpoint = context.opened(model)
        fitted = windows_of(context, checkpoint, windows)
        core.realise(checkpoint, plan, fitted, settings, writer, work)
        write_fitted(writer.path, [context.store.open(windows)])

    inputs = {"model": model.identity, "windows": windows.digest, "plan": plan.digest}
    asked = {"compensation": name, "options": options}
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
    lie = has_corrections(settings)
    if settings.chosen != "none" and (lie or (plan and plan.compensated)):
        raise InvalidInput("the plan was compensated already; leave --compensation out")
    if plan and not lie:
        hold_to_plan(plan, None)
        return plan, None
    realised, corrections = _lying(settings)
    if plan and plan.digest != realised.digest:
        raise InvalidInput(
            f"{settings.corrections} holds corrections of another plan ({realised.digest[:12]}) "
            f"than the one that was given ({plan.digest[:12]})"
        )
    note(f"corrections come from {settings.corrections}; no block is corrected again")
    return realised, corrections


def _lying(settings: CompensateSettings) -> tuple[PruningPlan, Handle]:
    place = Path(str(settings.corrections))
    return open_corrections(place)[0], Handle.to_directory(place)


def _inputs_of(name: Compensation, options: CompensationOptions) -> str:
    """What blocks are fitted on, and what is not done there whatever other options say."""
    if options.sequential:
        return "in order, on the pruned stream"
    return "on dense inputs" + (", so no input maps and no kept rows" if name in WEIGHED else "")


def check(settings: LineSettings, checkpoint: Checkpoint | None, thorough: bool) -> Lines:
    """What corrects, on which inputs, and the memory that takes.

    Raises InvalidInput for options, windows or memory with which it cannot be done.
    """
    section, calibrate = settings.compensate, settings.calibrate
    options = checks.compensation_options(section)
    if section.chosen == "none":
        return [("compensate", "none")]
    text = f"{section.chosen}, {_inputs_of(section.chosen, options)}"
    if checkpoint is not None:
        windows = samples_of(checkpoint, calibrate, [section]), calibrate.seqlen
        checks.check_compensation_settings(
            checkpoint, section, *windows, settings.compute.max_memory
        )
        need = gigabytes(checks.needed_bytes(checkpoint, section, *windows))
        text += f"; at most {need} for generated text or a block's moments"
    return [("compensate", text)]
