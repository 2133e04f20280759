"""The grid: what is tried, checked before anything runs, and what is refused with its reason."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import product
from typing import Any

from bipline.base.errors import InvalidInput
from bipline.compression.allocate import check_allocation, check_ratio, needs_windows
from bipline.compression.auto import settle
from bipline.compression.compensation.checks import check_compensation_settings
from bipline.compression.criteria import needs_of
from bipline.model.checkpoint import Checkpoint
from bipline.settings.line import AllocateSettings, LineSettings, sectioned
from bipline.settings.sweep import ComparisonSettings, GridSettings
from bipline.values.combination import NONE, Choice, Combination, Method


def combinations(
    settings: ComparisonSettings, models: Sequence[str], calibrations: Sequence[str]
) -> list[Combination]:
    """Every combination of the axes, models outermost and seeds innermost.

    Raises InvalidInput for an axis that is empty, holds a thing twice, or an unknown one.
    """
    grid, common = settings.grid, settings.allocate.model_dump()
    methods = _methods(grid)
    _check_axes(grid, methods)
    axes = (models, calibrations, methods, grid.layouts, grid.ratios, grid.seeds)
    return [
        Combination(
            model=model,
            calibration=calibration,
            layout=layout,
            ratio=ratio,
            seed=seed,
            **dict(settle(method, layout)[0]),
            **common,
        )
        for model, calibration, method, layout, ratio, seed in product(*axes)
    ]


def choices(texts: Iterable[str]) -> tuple[Choice, ...]:
    """Criteria, allocations or compensations as users write them. Raises InvalidInput."""
    try:
        return tuple(Choice.parse(text) for text in texts)
    except ValueError as error:
        raise InvalidInput(str(error)) from None


def line_of(combination: Combination) -> LineSettings:
    """The settings of the line of stages that makes a combination."""
    values = combination.model_dump(include=set(AllocateSettings.model_fields))
    for part in ("criterion", "allocation", "compensation"):
        chosen: Choice = getattr(combination, part)
        values |= {part: chosen.name, f"{part}_option": chosen.options}
    given = {**sectioned(values), "model": combination.model, "seed": combination.seed}
    return LineSettings.model_validate(given)


def runs_windows(combination: Combination) -> bool:
    """Whether any stage of a row runs calibration windows."""
    return (
        needs_of(combination.criterion.name).windows
        or combination.compensation.name != NONE
        or needs_windows(line_of(combination).allocate)
    )


def refusal_of(
    checkpoint: Checkpoint,
    combination: Combination,
    windows: tuple[int, int],
    max_memory: int | None = None,
) -> str | None:
    """Why a combination cannot be, as far as it shows without scores; None where it may run.

    ``windows`` are how many there are and their length, ``max_memory`` the user's limit in bytes.
    """
    criterion, line = combination.criterion, line_of(combination)
    try:
        check_allocation(checkpoint, line.allocate, criterion.name, criterion.options)
        check_compensation_settings(checkpoint, line.compensate, *windows, max_memory)
    except InvalidInput as refusal:
        return str(refusal)
    return None


def _methods(grid: GridSettings) -> list[Method]:
    """Every method that is tried, those of the axes first."""
    criteria = choices(grid.scored)
    if not criteria:
        if not grid.methods:
            raise InvalidInput("criteria: give at least one, or a method")
        for axis in ("allocations", "compensations"):
            if getattr(grid, axis):
                raise InvalidInput(
                    f"{axis} go with criteria; name some, or write them into methods"
                )
    axes = (criteria, choices(grid.allocations) or (None,), choices(grid.compensations) or (None,))
    for name, values in zip(("criteria", "allocations", "compensations"), axes, strict=True):
        _check_once(name, values)
    try:
        named = [Method.parse(text) for text in grid.methods]
    except ValueError as error:
        raise InvalidInput(str(error)) from None
    spanned = (
        Method(criterion=criterion, allocation=allocation, compensation=compensation)
        for criterion, allocation, compensation in product(*axes)
    )
    return [*spanned, *named]


def _check_axes(grid: GridSettings, methods: Sequence[Method]) -> None:
    for axis in ("layouts", "ratios", "seeds"):
        values = getattr(grid, axis)
        if not values:
            raise InvalidInput(f"{axis}: give at least one")
        _check_once(axis, values)
    for layout in grid.layouts:
        _check_once("methods", [settle(method, layout)[0] for method in methods])
    for ratio in grid.ratios:
        check_ratio(ratio)


def _check_once(axis: str, values: Sequence[Any]) -> None:
    for number, value in enumerate(values):
        if value in values[:number]:
            raise InvalidInput(f"{axis}: {getattr(value, 'label', value)} is given twice")
