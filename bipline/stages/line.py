"""The line: how a model becomes a smaller one. This page is the product, without a pipeline.

Every stage is found in the Store or produced into it (see :mod:`.stage`); a driver that calls the
stages one by one, as the steps of a pipeline do, makes the same keys and the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from bipline.compression.allocate import needs_windows
from bipline.compression.auto import applies
from bipline.model.checkpoint import Checkpoint
from bipline.settings.compress import CompressSettings
from bipline.settings.line import AllocateSettings, CompensateSettings, LineSettings
from bipline.stages import (
    allocate,
    calibrate,
    compensate,
    evaluate,
    export,
    precision,
    promote,
    prune,
    recover,
    resolve,
    score,
)
from bipline.stages.settled import settled
from bipline.stages.stage import Context, Lines
from bipline.storage.store import Handle
from bipline.values.fitted_text import beside_plan
from bipline.values.plan import PruningPlan
from bipline.values.precision import DtypeChoice
from bipline.values.resolution import ResolvedModel, ResolvedText

# In the order of the path; the first six make the smaller model.
STAGES: tuple[ModuleType, ...] = (
    resolve, calibrate, score, allocate, compensate, prune, recover, evaluate, export, promote,
)  # fmt: skip
MAKING = 6


@dataclass(frozen=True)
class Smaller:
    """What the line makes, by which plan, on which windows if any, and what chose their dtype."""

    model: Handle
    plan: PruningPlan
    calibration: Handle | None
    dtype_choice: DtypeChoice | None = None


def smaller(
    context: Context,
    model: ResolvedModel,
    texts: Mapping[str, ResolvedText],
    settings: LineSettings,
    evaluation: Iterable[ResolvedText] = (),
) -> Smaller | None:
    """Calibrate, score, allocate, compensate, prune; ``settings`` must name their method.

    None for a worker that only helps to score.
    """
    calibration = corrections = statistics = None
    if runs_windows(settings):
        calibration = calibrate.calibrate(
            context, model, texts, settings.calibrate, [settings.compensate], evaluation
        )
    context = precision.settled(context, model, calibration)
    if not context.workers.leads:
        if not applies(settings):
            score.help_to_score(context, model, calibration, settings.score)
        return None
    if applies(settings):
        plan, corrections = planned(context, model, settings.allocate, settings.compensate)
    else:
        statistics = score.score(context, model, calibration, settings.score)
        plan = allocate.allocate(context, model, calibration, statistics, settings.allocate)
    if plan.compensated is None:
        plan, corrections = compensate.compensate(
            context, model, calibration, plan, settings.compensate
        )
    fitted = [context.store.open(each) for each in (calibration, statistics) if each]
    if settings.allocate.plan:
        fitted.append(beside_plan(Path(settings.allocate.plan)))
    pruned = prune.prune(context, model, plan, corrections, settings.prune, fitted)
    return Smaller(pruned, plan, calibration, context.dtype_choice)


def planned(
    context: Context, model: ResolvedModel, given: AllocateSettings, settings: CompensateSettings
) -> tuple[PruningPlan, Handle | None]:
    """The plan that was given, or that of the corrections that were, with those it needs."""
    plan = allocate.given_plan(context, model, given) if given.plan else None
    return compensate.given_corrections(plan, settings)


def runs_windows(settings: LineSettings) -> str:
    """What runs calibration windows, by its name: the first stage that does. Empty for none."""
    if not applies(settings):
        if score.reads_windows(settings.score):
            return f"criterion {settings.score.criterion}"
        if needs_windows(settings.allocate):
            return f"allocation {settings.allocate.allocation}"
    compensation = settings.compensate.chosen
    return "" if compensation == "none" else f"compensation {compensation}"


def check(settings: LineSettings, thorough: bool = False) -> Lines:
    """Raise what can be seen to fail before any work; what each stage would do, in a line.

    ``thorough`` reads and tokenises the texts too, as the stages themselves would at once.
    """
    settings, reason = settled(settings)
    lines = [("method", reason)] if reason else []
    return lines + check_stages(settings, resolve.known_checkpoint(settings.model), thorough)


def check_stages(
    settings: LineSettings, checkpoint: Checkpoint | None, thorough: bool = False
) -> Lines:
    """The same for settings that name their method, and a model that was opened."""
    stages = STAGES if isinstance(settings, CompressSettings) else STAGES[:MAKING]
    return [told for stage in stages for told in stage.check(settings, checkpoint, thorough)]
