"""Allocate: scores and a budget become a :class:`PruningPlan`.

One of :mod:`bipline.compression.allocation` chooses how much every block keeps; which groups these
are, the scores say. What can be seen to fail without scores is refused before anything is computed
(:func:`check_allocation`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from bipline.base.errors import InvalidInput
from bipline.compression.allocation import (
    allocation_options,
    check_counts_experts,
    load_allocation,
)
from bipline.compression.allocation.attention_units import (
    asks_query_heads,
    check_has_query_heads,
    check_some_go,
    held_by_a_class,
)
from bipline.compression.allocation.notes import notes_of
from bipline.compression.allocation.problem import Problem
from bipline.compression.allocation.target import Target
from bipline.compression.allocation.uniform import largest_ratio, uniform_of
from bipline.compression.allocation.widths import (
    Choices,
    Widths,
    checked_multiple,
    choices_of,
    in_model,
    of_query_heads,
    open_choices,
    whole,
)
from bipline.compression.criteria import (
    check_scores_experts,
    check_scores_query_heads,
    options_of,
)
from bipline.compression.criteria.interface import BlockScores, Unit
from bipline.compression.prune import check_expert_channels, check_layout
from bipline.compression.statistics import Scores
from bipline.compression.windows import Windows
from bipline.model.checkpoint import Checkpoint
from bipline.model.families import ModelShape, exported_config, heads_fixed
from bipline.model.per_layer.shipping import own_class
from bipline.model.products import quick_float32
from bipline.model.shapes import PER_LAYER_PREFIX
from bipline.settings.line import AllocateSettings
from bipline.values.plan import Budget, PruningPlan

UNIFORM = "uniform"
DEPTH = "depth"


@quick_float32()
def allocate(
    checkpoint: Checkpoint,
    scores: Scores,
    settings: AllocateSettings,
    seed: int,
    windows: Windows | None = None,
    target: Target | None = None,
) -> PruningPlan:
    """Choose what every block keeps; ``windows`` are for allocations that run some.

    ``seed`` is for what an allocation draws. A ``target`` whose ratio the settings have is then met
    to a step. The plan is for the model of the scores; pruning
    compares its tensors while it reads them.
    Raises InvalidInput when the scores do not fit the model's shape or the allocation, and as
    :func:`check_allocation` does.
    """
    _check_fit(checkpoint, scores, settings)
    allocation = check_allocation(checkpoint, settings, scores.criterion, scores.options)
    options = allocation_options(allocation, seed, settings.allocation_option)
    ratio = _ratio_of_blocks(checkpoint, settings)
    settings = settings.model_copy(update={"allocation": allocation})
    choices = choices_for(checkpoint, settings)
    problem = Problem(checkpoint, scores, settings.layout, ratio, choices, windows)
    widths = load_allocation(allocation).widths(problem, options)
    if target:
        widths = target.fitted(choices, widths, alike=settings.layout == UNIFORM)
    kept = in_model(choices, widths)
    return PruningPlan(
        tensor_digest=scores.tensor_digest,
        criterion=scores.criterion,
        criterion_options=scores.options,
        allocation=allocation,
        allocation_options=options.to_json_value(),
        layout=settings.layout,
        budget=_budget(checkpoint, settings, kept),
        ffn_multiple=checked_multiple(shape_for(checkpoint, settings), settings.ffn_multiple),
        notes=notes_of(problem, widths, target),
        blocks=problem.plans(kept),
    )


def check_allocation(
    checkpoint: Checkpoint,
    settings: AllocateSettings,
    criterion: str,
    criterion_option: Mapping[str, Any],
) -> str:
    """The allocation that will be used, once it makes sense for this model and criterion.

    Raises InvalidInput for a ratio that makes no sense or cannot be reached, for an allocation
    that does not go with the criterion or the layout, and where no transformers class holds the
    result.
    """
    check_ratio(settings.ratio)
    if checkpoint.shape.per_layer:
        raise InvalidInput(
            f"{checkpoint.location}: its blocks differ in width already; prune the model that it "
            "was made from, or apply a plan with --plan"
        )
    prunes = options_of(criterion, 0, criterion_option).prunes
    allocation = settings.allocation or usual_allocation(prunes)
    settings = settings.model_copy(update={"allocation": allocation})
    if by_query_heads(settings):
        check_scores_query_heads(criterion)
    check_scores_experts(criterion, checkpoint.shape)
    check_counts_experts(allocation, shape_for(checkpoint, settings))
    _check_pairing(allocation, criterion, prunes, settings)
    check_layout(checkpoint, settings.layout)
    if settings.layout == "per-layer":
        own_class(f"{PER_LAYER_PREFIX}{checkpoint.config['model_type']}")
    choices = choices_for(checkpoint, settings)
    _check_reach(checkpoint, settings, allocation, choices)
    if allocation == UNIFORM and settings.layout == "uniform":
        uniform_config(checkpoint.config, checkpoint, settings)
    return allocation


def by_query_heads(settings: AllocateSettings) -> bool:
    """Whether query heads go in place of groups; no allocation that is not named is asked."""
    if settings.allocation is None:
        return False
    return asks_query_heads(allocation_options(settings.allocation, 0, settings.allocation_option))


def usual_allocation(prunes: Unit) -> str:
    """The allocation that goes with scores of these units, where none is named."""
    return UNIFORM if prunes == "groups" else DEPTH


def uniform_widths_of(checkpoint: Checkpoint, settings: AllocateSettings) -> Widths:
    """What every block keeps by allocation ``uniform``: known before anything is scored.

    Its units are those of :func:`shape_for`.
    """
    return uniform_of(choices_for(checkpoint, settings), _ratio_of_blocks(checkpoint, settings))


def uniform_config(
    config: Mapping[str, Any], checkpoint: Checkpoint, settings: AllocateSettings
) -> dict[str, Any]:
    """A config as allocation ``uniform`` leaves it. Raises InvalidInput where no class holds it."""
    each = open_choices(choices_for(checkpoint, settings))[0]
    kept = each.in_model(uniform_widths_of(checkpoint, settings))
    inside = kept.queries_per_group, kept.channels_per_expert
    return exported_config(config, kept.ffn_units, kept.attention_groups, None, *inside)


def shape_for(checkpoint: Checkpoint, settings: AllocateSettings) -> ModelShape:
    """The model's sizes, with what the settings say that experts lose.

    Raises InvalidInput where channels of experts are to go and cannot.
    """
    if settings.of_experts == "channels":
        check_expert_channels(checkpoint)
    return checkpoint.shape.within(settings.of_experts == "channels")


def needs_windows(settings: AllocateSettings) -> bool:
    """Whether the allocation runs calibration windows itself."""
    return settings.allocation is not None and load_allocation(settings.allocation).WINDOWS


def check_ratio(ratio: float) -> None:
    """Raise InvalidInput unless the ratio lies strictly between 0 and 1."""
    if not (math.isfinite(ratio) and 0 < ratio < 1):
        raise InvalidInput(f"ratio {ratio}: must lie between 0 and 1, both excluded")


def _check_fit(checkpoint: Checkpoint, scores: Scores, settings: AllocateSettings) -> None:
    shape = checkpoint.shape
    if len(scores.blocks) != shape.num_hidden_layers or not all(
        _fits(shape.block(index), block) for index, block in enumerate(scores.blocks)
    ):
        raise InvalidInput(f"the scores are of another model than {checkpoint.location}")
    if settings.of_experts == "channels" and not all(
        _tells_channels(shape.block(index), block) for index, block in enumerate(scores.blocks)
    ):
        raise InvalidInput(
            "of_experts channels: the scores, or the sums that they were made of, say nothing of "
            "channels of experts; score again"
        )


def _tells_channels(shape: ModelShape, scores: BlockScores) -> bool:
    """Whether scores are of all channels of experts that a block of this shape has."""
    if not shape.num_experts:
        return True
    shared = 0 if scores.shared_channels is None else len(scores.shared_channels)
    return scores.expert_channels is not None and shared == shape.shared_channels


def _fits(shape: ModelShape, scores: BlockScores) -> bool:
    """Whether scores are of a block of this shape."""
    widths = len(scores.attention_groups), len(scores.ffn_units)
    experts = scores.experts is not None
    return widths == (shape.num_key_value_heads, shape.ffn_units) and experts == bool(
        shape.num_experts
    )


def _check_pairing(
    allocation: str, criterion: str, prunes: Unit, settings: AllocateSettings
) -> None:
    """Refuse an allocation that cannot use these scores, or cannot give this layout."""
    if allocation == DEPTH and prunes == "groups":
        raise InvalidInput(
            f"allocation depth drops whole blocks or sublayers, and criterion {criterion} scores "
            "groups; use block-influence or block-shapley"
        )
    if allocation != DEPTH and prunes != "groups":
        raise InvalidInput(
            f"criterion {criterion} scores {prunes}, not groups; only allocation depth uses that, "
            f"not {allocation}"
        )
    if settings.layout == "per-layer":
        return
    if prunes == "sublayers":
        raise InvalidInput(
            "dropped sublayers leave blocks that differ, which the uniform layout excludes; use "
            "--layout per-layer, or --criterion-option of=blocks"
        )
    if reason := load_allocation(allocation).NOT_UNIFORM:
        raise InvalidInput(
            f"allocation {allocation} cannot choose uniform widths: {reason}; use "
            "--layout per-layer"
        )
    if allocation != DEPTH and (settings.keep_first or settings.keep_last):
        raise InvalidInput(
            f"keep_first {settings.keep_first} and keep_last {settings.keep_last} leave blocks of "
            "different widths, which the uniform layout excludes; use --layout per-layer"
        )


def choices_for(checkpoint: Checkpoint, settings: AllocateSettings) -> tuple[Choices, ...]:
    """What every block may keep by the allocation of the settings.

    Whole blocks may go whatever their class fixes. Raises InvalidInput where none may lose
    anything.
    """
    shape, layers = shape_for(checkpoint, settings), checkpoint.shape.num_hidden_layers
    if settings.keep_first + settings.keep_last >= layers:
        raise InvalidInput(
            f"keep_first {settings.keep_first} and keep_last {settings.keep_last} leave none of "
            f"{layers} blocks to prune"
        )
    multiple = checked_multiple(shape, settings.ffn_multiple)
    by_depth = settings.allocation == DEPTH
    if checkpoint.family.ffn_fixed and not by_depth:
        raise InvalidInput(
            f"{checkpoint.family.architecture} fixes its heads and the width of its FFN, so that "
            "whole blocks alone can go; use criterion block-influence or block-shapley"
        )
    fixed = heads_fixed(checkpoint.config) and not by_depth
    # All heads are alike, so that attention stays where some blocks stay whole for their FFN.
    free = choices_of(shape, multiple, settings.divisible_by, fixed or shape.dense_blocks > 0)
    if heads := by_query_heads(settings):
        check_has_query_heads(checkpoint, settings)
        free = of_query_heads(free, settings.divisible_by)
    if settings.layout == "uniform" and not by_depth:
        free = held_by_a_class(checkpoint, free)
    if heads:
        check_some_go(checkpoint, free)
    first, last = max(settings.keep_first, shape.dense_blocks), layers - settings.keep_last
    return tuple(free if first <= i < last else whole(shape.block(i)) for i in range(layers))


def _check_reach(
    checkpoint: Checkpoint,
    settings: AllocateSettings,
    allocation: str,
    choices: tuple[Choices, ...],
) -> None:
    """Refuse a ratio above what the blocks can lose."""
    if allocation == UNIFORM and settings.layout == "uniform":
        each, share = open_choices(choices)
        largest, how = largest_ratio(each) / share, " with uniform widths"
    else:
        total = sum(each.shape.block_weights for each in choices)
        largest, how = sum(each.most_removed for each in choices) / total, ""
    asked = _ratio_of_blocks(checkpoint, settings)
    if asked > largest:
        of = "the blocks" if settings.ratio_of == "blocks" else "all parameters"
        if (taken := shape_for(checkpoint, settings).least_units) > 1:
            how += f" where each token passes through {taken} experts, so that as many stay"
        raise InvalidInput(
            f"ratio {settings.ratio:g} of {of} cannot be reached{how}; the largest that can is "
            f"{math.floor(largest * settings.ratio / asked * 1e4) / 1e4:g}"
        )


def _ratio_of_blocks(checkpoint: Checkpoint, settings: AllocateSettings) -> float:
    if settings.ratio_of == "blocks":
        return settings.ratio
    shape = checkpoint.shape
    in_blocks = shape.linear_weights / checkpoint.parameters
    return settings.ratio / in_blocks


def _budget(checkpoint: Checkpoint, settings: AllocateSettings, widths: list[Widths]) -> Budget:
    shape = checkpoint.shape
    removed = sum(each.removed_weights(shape.block(i)) for i, each in enumerate(widths))
    return Budget(
        asked=settings.ratio,
        of=settings.ratio_of,
        reached_blocks=removed / shape.linear_weights,
        reached_total=removed / checkpoint.parameters,
    )
