"""The grid: what is tried, checked before anything runs, and what is refused with its reason."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from itertools import product
from math import prod
from typing import Any

from bipline.base.errors import InvalidInput
from bipline.compression.allocate import check_allocation, check_ratio
from bipline.compression.auto import settle
from bipline.compression.compensation.checks import check_compensation_settings
from bipline.model.checkpoint import Checkpoint
from bipline.settings.line import AllocateSettings, CompensateSettings, LineSettings, sectioned
from bipline.settings.sweep import ComparisonSettings, GridSettings
from bipline.values.combination import Choice, Combination, Method

MOST_ROWS = 10_000


def combinations(
    settings: ComparisonSettings,
    models: Sequence[str],
    calibrations: Sequence[str],
    mixtures: Collection[str] = (),
) -> list[Combination]:
    """Every combination of the axes, models outermost and seeds innermost.

    ``mixtures`` are the models whose FFNs have experts, for which ``auto`` chooses other parts.
    Raises InvalidInput for an axis that holds a thing twice or an unknown one, and where there is
    no criterion.
    """
    grid, methods = settings.grid, _methods(settings.grid)
    axes = (models, calibrations, methods, grid.layouts, grid.ratios, grid.seeds)
    if (count := prod(map(len, axes))) > MOST_ROWS:
        raise InvalidInput(f"{count:,} combinations; at most {MOST_ROWS:,} are tried at once")
    _check_axes(grid, methods)
    return [
        Combination(
            model=model,
            calibration=calibration,
            layout=layout,
            ratio=ratio,
            seed=seed,
            **dict(settle(method, layout, settings.effort, model in mixtures)[0]),
            **settings.allocate.model_dump(),
        )
        for model, calibration, method, layout, ratio, seed in product(*axes)
    ]


def line_of(combination: Combination) -> LineSettings:
    """The settings of the line of stages that makes a combination."""
    values = combination.model_dump(include=set(AllocateSettings.model_fields))
    for part in ("criterion", "allocation", "compensation"):
        chosen: Choice = getattr(combination, part)
        values |= {part: chosen.name, f"{part}_option": chosen.options}
    given = {**sectioned(values), "model": combination.model, "seed": combination.seed}
    return LineSettings.model_validate(given)


def compensations_of(combinations: Iterable[Combination]) -> tuple[CompensateSettings, ...]:
    """Each compensation of a grid once: together they say how many windows are drawn for all."""
    found = (line_of(each).compensate for each in combinations)
    return tuple({each.model_dump_json(): each for each in found}.values())


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


def check_some_run(told: Iterable[tuple[Combination, str | None]]) -> None:
    """Raise InvalidInput where every combination was refused; each comes with why, or None."""
    refused = list(told)
    if not refused or any(reason is None for _, reason in refused):
        return
    (first, reason), *_ = refused
    raise InvalidInput(f"every combination is refused ({len(refused)}); {first.label}: {reason}")


def _methods(grid: GridSettings) -> list[Method]:
    """Every method that is tried, those of the axes first."""
    axes = {
        "criteria": _choices(grid.scored),
        "allocations": _choices(grid.allocations),
        "compensations": _choices(grid.compensations),
    }
    if not axes["criteria"]:
        if not grid.methods:
            raise InvalidInput("criteria: give at least one, or a method")
        for axis in [axis for axis, named in axes.items() if named]:
            raise InvalidInput(f"{axis} go with criteria; name some, or write them into methods")
    for axis, values in axes.items():
        _check_once(axis, values)
    criteria, *others = axes.values()
    spanned = product(criteria, *(values or (None,) for values in others))
    parts = ("criterion", "allocation", "compensation")
    methods = [Method.model_validate(dict(zip(parts, each, strict=True))) for each in spanned]
    return [*methods, *map(Method.parse, grid.methods)]


def _choices(texts: Iterable[str]) -> tuple[Choice, ...]:
    return tuple(map(Choice.parse, texts))


def _check_axes(grid: GridSettings, methods: Sequence[Method]) -> None:
    for axis in ("layouts", "ratios", "seeds"):
        _check_once(axis, getattr(grid, axis))
    for layout in grid.layouts:
        _check_once("methods", [settle(method, layout)[0] for method in methods])
    for ratio in grid.ratios:
        check_ratio(ratio)


def _check_once(axis: str, values: Sequence[Any]) -> None:
    for number, value in enumerate(values):
        if value in values[:number]:
            raise InvalidInput(f"{axis}: {getattr(value, 'label', value)} is given twice")
