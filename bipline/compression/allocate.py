"""Allocate: scores and a budget become a :class:`PruningPlan`.

A rule of :mod:`bipline.compression.allocation` chooses how much every block keeps; which groups
these are, the scores say. What can be seen to fail without scores is refused before anything is
computed (:func:`check_request`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast, get_args

from bipline.base.errors import InvalidInput
from bipline.base.progress import note
from bipline.compression.allocation import load_rule, rule_options
from bipline.compression.allocation.problem import Problem, Windows, highest
from bipline.compression.allocation.uniform import largest_ratio, uniform_widths
from bipline.compression.allocation.widths import (
    Choices,
    Widths,
    checked_multiple,
    choices_of,
    whole,
)
from bipline.compression.criteria import options_of
from bipline.compression.statistics import Scores
from bipline.model.checkpoint import Checkpoint
from bipline.model.families import exported_config
from bipline.values.plan import BlockPlan, Budget, Layout, PruningPlan

RatioOf = Literal["blocks", "total"]
DEPTH = "depth"


@dataclass(frozen=True)
class AllocationRequest:
    """How much is to go, by which rule, and what must stay.

    ``ratio`` is a share of the blocks' linear weights, or of all parameters (``ratio_of`` total).
    ``rule`` None is ``uniform``, or ``depth`` for criteria that score units of depth.
    """

    ratio: float
    ratio_of: str = "blocks"
    rule: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    layout: str = "uniform"
    ffn_multiple: int | None = None
    keep_first: int = 0
    keep_last: int = 0
    divisible_by: int = 1


def allocate(
    checkpoint: Checkpoint,
    scores: Scores,
    request: AllocationRequest,
    measuring: Windows | None = None,
) -> PruningPlan:
    """Choose what every block keeps; ``measuring`` are windows for rules that run some.

    The plan is for the model of the scores; pruning compares its tensors while it reads them.
    Raises InvalidInput when the scores do not fit the model's shape or the rule, and as
    :func:`check_request` does.
    """
    _check_fit(checkpoint, scores)
    rule = check_request(checkpoint, request, scores.criterion, scores.options)
    options = rule_options(rule, request.seed, request.options)
    ratio = _ratio_of_blocks(checkpoint, request)
    choices = _choices(checkpoint, request)
    layout = cast("Layout", request.layout)
    problem = Problem(checkpoint, scores, layout, ratio, choices, measuring)
    widths = load_rule(rule).widths(problem, options)
    return PruningPlan(
        tensor_digest=scores.tensor_digest,
        criterion=scores.criterion,
        criterion_options=scores.options,
        allocation=rule,
        allocation_options=options.to_json_value(),
        layout=layout,
        budget=_budget(checkpoint, request, widths),
        ffn_multiple=checked_multiple(checkpoint.shape, request.ffn_multiple),
        notes=_notes(problem),
        blocks=tuple(
            BlockPlan(
                attention_groups=highest(block.attention_groups, kept.attention_groups),
                ffn_channels=highest(block.ffn_channels, kept.ffn_channels),
            )
            for block, kept in zip(scores.blocks, widths, strict=True)
        ),
    )


def check_request(
    checkpoint: Checkpoint,
    request: AllocationRequest,
    criterion: str,
    criterion_options: Mapping[str, Any],
) -> str:
    """The rule that will be used, once the request makes sense for this model and criterion.

    Raises InvalidInput for a ratio that makes no sense or cannot be reached, for a rule that
    does not go with the criterion or the layout, and where no transformers class holds the
    result.
    """
    check_ratio(request.ratio)
    if checkpoint.shape.per_layer:
        raise InvalidInput(
            f"{checkpoint.location}: its blocks differ in width already; prune the model that it "
            "was made from, or apply a plan with --plan"
        )
    for name, value, known in (
        ("ratio_of", request.ratio_of, RatioOf),
        ("layout", request.layout, Layout),
    ):
        if value not in get_args(known):
            raise InvalidInput(f"{name} {value!r}: must be {' or '.join(get_args(known))}")
    options = options_of(criterion, 0, criterion_options)
    rule = request.rule or ("uniform" if options.prunes == "groups" else DEPTH)
    rule_options(rule, request.seed, request.options)
    _check_pairing(rule, criterion, options.prunes, request)
    choices = _choices(checkpoint, request)
    _check_reach(checkpoint, request, rule, choices)
    if rule == "uniform" and request.layout == "uniform":
        widths = uniform_widths_of(checkpoint, request)
        exported_config(checkpoint.config, widths.ffn_channels, widths.attention_groups)
    return rule


def uniform_widths_of(checkpoint: Checkpoint, request: AllocationRequest) -> Widths:
    """What every block keeps by the rule ``uniform``: known before anything is scored."""
    return uniform_widths(_choices(checkpoint, request)[0], _ratio_of_blocks(checkpoint, request))


def needs_windows(request: AllocationRequest) -> bool:
    """Whether the rule runs calibration windows itself."""
    return request.rule is not None and load_rule(request.rule).WINDOWS


def check_ratio(ratio: float) -> None:
    """Raise InvalidInput unless the ratio lies strictly between 0 and 1."""
    if not (math.isfinite(ratio) and 0 < ratio < 1):
        raise InvalidInput(f"ratio {ratio}: must lie between 0 and 1, both excluded")


def _check_fit(checkpoint: Checkpoint, scores: Scores) -> None:
    shape = checkpoint.shape
    widths = {(len(block.attention_groups), len(block.ffn_channels)) for block in scores.blocks}
    fits = widths == {(shape.num_key_value_heads, shape.intermediate_size)}
    if not fits or len(scores.blocks) != shape.num_hidden_layers:
        raise InvalidInput(f"the scores are of another model than {checkpoint.location}")


def _check_pairing(rule: str, criterion: str, prunes: str, request: AllocationRequest) -> None:
    """Refuse a rule that cannot use these scores, or cannot give this layout."""
    if rule == DEPTH and prunes == "groups":
        raise InvalidInput(
            f"allocation depth drops whole blocks or sublayers, and criterion {criterion} scores "
            "groups; use block-influence or block-shapley"
        )
    if rule != DEPTH and prunes != "groups":
        raise InvalidInput(
            f"criterion {criterion} scores {prunes}, not groups; only allocation depth uses that, "
            f"not {rule}"
        )
    if request.layout == "per-layer":
        return
    if prunes == "sublayers":
        raise InvalidInput(
            "dropped sublayers leave blocks that differ, which the uniform layout excludes; use "
            "--layout per-layer, or --criterion-option of=blocks"
        )
    if reason := load_rule(rule).NOT_UNIFORM:
        raise InvalidInput(
            f"allocation {rule} cannot choose uniform widths: {reason}; use --layout per-layer"
        )
    if rule != DEPTH and (request.keep_first or request.keep_last):
        raise InvalidInput(
            f"keep_first {request.keep_first} and keep_last {request.keep_last} leave blocks of "
            "different widths, which the uniform layout excludes; use --layout per-layer"
        )


def _choices(checkpoint: Checkpoint, request: AllocationRequest) -> tuple[Choices, ...]:
    shape, layers = checkpoint.shape, checkpoint.shape.num_hidden_layers
    for name in ("keep_first", "keep_last", "divisible_by"):
        value, least = getattr(request, name), 1 if name == "divisible_by" else 0
        if value < least:
            raise InvalidInput(f"{name} {value}: must be at least {least}")
    if request.keep_first + request.keep_last >= layers:
        raise InvalidInput(
            f"keep_first {request.keep_first} and keep_last {request.keep_last} leave none of "
            f"{layers} blocks to prune"
        )
    multiple = checked_multiple(shape, request.ffn_multiple)
    free, kept = choices_of(shape, multiple, request.divisible_by), whole(shape)
    last = layers - request.keep_last
    return tuple(free if request.keep_first <= i < last else kept for i in range(layers))


def _check_reach(
    checkpoint: Checkpoint, request: AllocationRequest, rule: str, choices: tuple[Choices, ...]
) -> None:
    """Refuse a ratio above what the blocks can lose."""
    if rule == "uniform" and request.layout == "uniform":
        largest, how = largest_ratio(choices[0]), " with uniform widths"
    else:
        total = sum(each.shape.block_weights for each in choices)
        largest, how = sum(each.most_removed for each in choices) / total, ""
    asked = _ratio_of_blocks(checkpoint, request)
    if asked > largest:
        of = "the blocks" if request.ratio_of == "blocks" else "all parameters"
        raise InvalidInput(
            f"ratio {request.ratio:g} of {of} cannot be reached{how}; the largest that can is "
            f"{math.floor(largest * request.ratio / asked * 1e4) / 1e4:g}"
        )


def _ratio_of_blocks(checkpoint: Checkpoint, request: AllocationRequest) -> float:
    if request.ratio_of == "blocks":
        return request.ratio
    shape = checkpoint.shape
    in_blocks = shape.block_weights * shape.num_hidden_layers / checkpoint.parameters
    return request.ratio / in_blocks


def _budget(checkpoint: Checkpoint, request: AllocationRequest, widths: list[Widths]) -> Budget:
    shape = checkpoint.shape
    removed = sum(each.removed_weights(shape) for each in widths)
    return Budget(
        asked=request.ratio,
        of=cast("RatioOf", request.ratio_of),
        reached_blocks=removed / (shape.block_weights * len(widths)),
        reached_total=removed / checkpoint.parameters,
    )


def _notes(problem: Problem) -> tuple[str, ...]:
    if problem.checkpoint.shape.num_key_value_heads > 1 or problem.scores.prunes != "groups":
        return ()
    text = "one KV head (MQA): attention stays whole and the FFN takes the whole ratio"
    note(text)
    return (text,)
