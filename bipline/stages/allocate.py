"""Allocate: scores and a budget become a plan, or a plan that was given is taken as it is."""

from __future__ import annotations

from pathlib import Path

from bipline.base.errors import InvalidInput
from bipline.compression import allocate as core
from bipline.compression.allocation import ALLOCATIONS, allocation_module, allocation_options
from bipline.compression.prune import check_budget, check_plan
from bipline.compression.statistics import load_statistics
from bipline.model.checkpoint import Checkpoint
from bipline.settings.line import AllocateSettings, LineSettings
from bipline.stages.calibrate import needed, windows_of
from bipline.stages.stage import Context, Lines, Stage
from bipline.stages.targets import target_of, with_ratio
from bipline.storage.store import Handle
from bipline.values.plan import PruningPlan, read_plan
from bipline.values.resolution import ResolvedModel

CORE = "bipline.compression.allocate"
# An orchestrator's cache cannot see which allocation is meant, so it follows all of them.
STAGE = Stage("allocate", "plan", (CORE, *(allocation_module(name) for name in ALLOCATIONS)))


def allocate(
    context: Context,
    model: ResolvedModel,
    calibration: Handle | None,
    statistics: Handle,
    settings: AllocateSettings,
) -> PruningPlan:
    """Choose what every block keeps; allocations that measure run the calibration windows.

    ``settings.allocation`` must be named. The key follows the scores, whatever sums lie by them.
    """
    name = str(settings.allocation)
    windows = needed(calibration, f"allocation {name}") if core.needs_windows(settings) else None
    inputs = {"model": model.identity, "scores": str(statistics.info["scores"])}
    inputs |= {"windows": windows.digest} if windows else {}
    options = allocation_options(name, context.seed, settings.allocation_option).to_json_value()
    asked = settings.model_dump(mode="json", exclude={"plan", "allocation_option"})
    checkpoint = context.opened(model)
    target, settings = target_of(checkpoint, settings), with_ratio(checkpoint, settings)
    computing = context.computing if windows else None
    # A plan tells what was chosen for it, and not where the user named it.
    chosen = context.dtype_choice.told if context.dtype_choice else None
    asked |= {"told": chosen} if chosen else {}
    key = STAGE.key(
        inputs, {**asked, "options": options}, computing, (CORE, allocation_module(name))
    )

    def produce(work: Path) -> PruningPlan:
        scores = load_statistics(context.store.open(statistics))[1]
        run = windows_of(context, checkpoint, windows) if windows else None
        plan = core.allocate(checkpoint, scores, settings, context.seed, run, target)
        return plan.model_copy(update={"notes": (*plan.notes, chosen)}) if chosen else plan

    return STAGE.value(context, key, PruningPlan, produce)


def given_plan(context: Context, model: ResolvedModel, settings: AllocateSettings) -> PruningPlan:
    """The plan in the file that the settings name. Raises InvalidInput where it does not fit."""
    plan = read_plan(Path(str(settings.plan)))
    check_plan(context.opened(model), plan)
    check_budget(context.opened(model), plan)
    return plan


def check(settings: LineSettings, checkpoint: Checkpoint | None, thorough: bool) -> Lines:
    """How much goes by what, and what is left of every block where that is known already.

    Raises InvalidInput for a budget that cannot be met, or a plan that is not of this model.
    """
    section, score = settings.allocate, settings.score
    if section.plan:
        if section.budget_is_given:
            raise InvalidInput("--plan fixes the ratio; give --plan or --ratio, not both")
        plan = read_plan(Path(section.plan))
        if checkpoint is not None:
            check_plan(checkpoint, plan)
            check_budget(checkpoint, plan)
        return [("allocate", f"as the plan {section.plan} says")]
    core.check_ratio(section.ratio)
    if checkpoint is not None:
        section = with_ratio(checkpoint, section)
        core.check_allocation(checkpoint, section, score.criterion, score.criterion_option)
    text = f"remove {section.ratio:.4g} of {section.ratio_of}, {section.layout} layout"
    if (section.allocation, section.layout) != ("uniform", "uniform") or checkpoint is None:
        heads = ", query heads in place of groups" if core.by_query_heads(section) else ""
        return [("allocate", f"{text}, by {section.allocation}{heads}")]
    widths = core.uniform_widths_of(checkpoint, section)
    shape = core.shape_for(checkpoint, section)
    text += f": keep {widths.attention_groups} of {shape.num_key_value_heads} attention groups"
    if widths.queries_per_group:
        text += f", {widths.queries_per_group} of {shape.queries_per_group} query heads of each,"
    text += " and "
    text += f"{widths.ffn_units} of {shape.ffn_units} {shape.ffn_kind} in every block"
    if shape.dense_blocks:
        text += f" but the first {shape.dense_blocks}, which stay whole"
    return [("allocate", text)]
