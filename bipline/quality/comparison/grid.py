"""The grid: what is tried, checked before anything runs, and what is refused with its reason."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, get_args

from bipline.artifacts.comparison import Choice, Combination
from bipline.artifacts.errors import InvalidInput
from bipline.artifacts.plan import Layout
from bipline.compression.allocate import (
    DEPTH,
    AllocationRequest,
    RatioOf,
    check_ratio,
    check_request,
)
from bipline.compression.allocation import rule_options
from bipline.compression.criteria import options_of
from bipline.compression.criteria.interface import Options
from bipline.model.checkpoint import Checkpoint

# The one list of compensations that may be asked for.
COMPENSATIONS = ("none",)


@dataclass(frozen=True)
class Common:
    """What all combinations share of an allocation (see :class:`AllocationRequest`)."""

    ratio_of: str = "blocks"
    ffn_multiple: int | None = None
    keep_first: int = 0
    keep_last: int = 0
    divisible_by: int = 1


@dataclass(frozen=True)
class Grid:
    """The axes. No ``allocations`` means the rule that goes with the criterion."""

    models: tuple[str, ...]
    calibrations: tuple[str, ...]
    criteria: tuple[Choice, ...]
    allocations: tuple[Choice, ...]
    layouts: tuple[str, ...]
    compensations: tuple[str, ...]
    ratios: tuple[float, ...]
    seeds: tuple[int, ...]
    common: Common = Common()


def choices(texts: Iterable[str]) -> tuple[Choice, ...]:
    """Criteria or rules as users write them. Raises InvalidInput for what is none."""
    try:
        return tuple(Choice.parse(text) for text in texts)
    except ValueError as error:
        raise InvalidInput(str(error)) from None


def check_grid(grid: Grid) -> None:
    """Raise InvalidInput for an axis that is empty, holds a thing twice, or an unknown one."""
    for axis in ("criteria", "layouts", "compensations", "ratios", "seeds"):
        if not getattr(grid, axis):
            raise InvalidInput(f"{axis}: give at least one")
    for criterion in grid.criteria:
        options_of(criterion.name, 0, criterion.options)
    for rule in grid.allocations:
        rule_options(rule.name, 0, rule.options)
    for ratio in grid.ratios:
        check_ratio(ratio)
    _check_known("layout", grid.layouts, get_args(Layout))
    _check_known("compensation", grid.compensations, COMPENSATIONS)
    _check_known("ratio_of", [grid.common.ratio_of], get_args(RatioOf))
    for name, value in vars(grid).items():
        if isinstance(value, tuple):
            _check_once(name, value)


def combinations(grid: Grid) -> list[Combination]:
    """Every combination of the axes, models outermost and seeds innermost."""
    axes = (
        grid.models, grid.calibrations, grid.criteria, grid.allocations or (None,), grid.layouts,
        grid.compensations, grid.ratios, grid.seeds,
    )  # fmt: skip
    return [
        Combination(
            model=model,
            calibration=calibration,
            criterion=criterion,
            allocation=rule or _usual_rule(criterion),
            layout=layout,
            compensation=compensation,
            ratio=ratio,
            seed=seed,
            **vars(grid.common),
        )
        for model, calibration, criterion, rule, layout, compensation, ratio, seed in product(*axes)
    ]


def scoring_options(combination: Combination) -> Options:
    """The criterion's options, drawn by the combination's seed."""
    return options_of(combination.criterion.name, combination.seed, combination.criterion.options)


def request_of(combination: Combination) -> AllocationRequest:
    """The allocation that a combination asks for."""
    return AllocationRequest(
        ratio=combination.ratio,
        ratio_of=combination.ratio_of,
        rule=combination.allocation.name,
        options=combination.allocation.options,
        seed=combination.seed,
        layout=combination.layout,
        ffn_multiple=combination.ffn_multiple,
        keep_first=combination.keep_first,
        keep_last=combination.keep_last,
        divisible_by=combination.divisible_by,
    )


def refusal_of(checkpoint: Checkpoint, combination: Combination) -> str | None:
    """Why a combination cannot be, as far as it shows without scores; None where it may run."""
    try:
        options = scoring_options(combination).to_json_value()
        check_request(checkpoint, request_of(combination), combination.criterion.name, options)
    except InvalidInput as refusal:
        return str(refusal)
    return None


def _usual_rule(criterion: Choice) -> Choice:
    prunes = options_of(criterion.name, 0, criterion.options).prunes
    return Choice(name="uniform" if prunes == "groups" else DEPTH)


def _check_known(what: str, given: Sequence[str], known: Sequence[str]) -> None:
    for name in given:
        if name not in known:
            raise InvalidInput(f"{what} {name!r} is unknown; known: {', '.join(known)}")


def _check_once(axis: str, values: tuple[Any, ...]) -> None:
    for number, value in enumerate(values):
        if value in values[:number]:
            shown = value.label if isinstance(value, Choice) else value
            raise InvalidInput(f"{axis}: {shown} is given twice")
