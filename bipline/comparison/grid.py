"""The grid: what is tried, checked before anything runs, and what is refused with its reason."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, get_args

from bipline.base.errors import InvalidInput
from bipline.comparison.methods import (
    Asked,
    Settled,
    check_method,
    compensation_of,
    settle,
)
from bipline.compression.allocate import (
    AllocationRequest,
    RatioOf,
    check_ratio,
    check_request,
    needs_windows,
)
from bipline.compression.compensation.realise import needed_bytes
from bipline.compression.criteria import options_of
from bipline.compression.criteria.interface import Options
from bipline.model.checkpoint import Checkpoint
from bipline.values.combination import Choice, Combination
from bipline.values.plan import Layout


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
    """The axes. No ``allocations`` or ``compensations`` means what goes with the criterion.

    ``methods`` are tried beside the product of criteria, allocations and compensations.
    """

    models: tuple[str, ...]
    calibrations: tuple[str, ...]
    criteria: tuple[Choice, ...]
    allocations: tuple[Choice, ...]
    layouts: tuple[str, ...]
    compensations: tuple[Choice, ...]
    ratios: tuple[float, ...]
    seeds: tuple[int, ...]
    methods: tuple[Asked, ...] = ()
    common: Common = Common()

    @property
    def asked(self) -> tuple[Asked, ...]:
        """Every method that is tried, those of the axes first."""
        axes = (self.criteria, self.allocations or (None,), self.compensations or (None,))
        spanned = (Asked(*parts) for parts in product(*axes))
        return (*spanned, *self.methods)

    def settled(self, layout: str) -> tuple[Settled, ...]:
        """What they stand for in a layout."""
        return tuple(settle(asked, layout) for asked in self.asked)


def choices(texts: Iterable[str]) -> tuple[Choice, ...]:
    """Criteria, rules or compensations as users write them. Raises InvalidInput for others."""
    try:
        return tuple(Choice.parse(text) for text in texts)
    except ValueError as error:
        raise InvalidInput(str(error)) from None


def check_grid(grid: Grid) -> None:
    """Raise InvalidInput for an axis that is empty, holds a thing twice, or an unknown one."""
    _check_filled(grid)
    for name, value in vars(grid).items():
        if isinstance(value, tuple):
            _check_once(name, value)
    _check_known("layout", grid.layouts, get_args(Layout))
    for layout in grid.layouts:
        methods = grid.settled(layout)
        _check_once("methods", methods)
        for method in methods:
            check_method(method)
    for ratio in grid.ratios:
        check_ratio(ratio)
    _check_known("ratio_of", [grid.common.ratio_of], get_args(RatioOf))


def combinations(grid: Grid) -> list[Combination]:
    """Every combination of the axes, models outermost and seeds innermost."""
    axes = (
        grid.models, grid.calibrations, grid.asked, grid.layouts, grid.ratios, grid.seeds,
    )  # fmt: skip
    return [
        Combination(
            model=model,
            calibration=calibration,
            layout=layout,
            ratio=ratio,
            seed=seed,
            **vars(settle(asked, layout)),
            **vars(grid.common),
        )
        for model, calibration, asked, layout, ratio, seed in product(*axes)
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


def runs_windows(combination: Combination) -> bool:
    """Whether the windows are run again when everything is scored: by the rule, or to correct."""
    return combination.compensates or needs_windows(request_of(combination))


def compensation_bytes_of(
    checkpoint: Checkpoint, combination: Combination, samples: int, seqlen: int
) -> int:
    """Bytes that a combination's compensation needs beside the forward pass."""
    request = compensation_of(combination.compensation)
    return needed_bytes(checkpoint, request.chosen, request.settings, samples, seqlen)


def refusal_of(
    checkpoint: Checkpoint,
    combination: Combination,
    windows: tuple[int, int],
    max_memory: int | None = None,
) -> str | None:
    """Why a combination cannot be, as far as it shows without scores; None where it may run.

    ``windows`` are how many there are and their length, ``max_memory`` the user's limit in bytes.
    """
    try:
        options = scoring_options(combination).to_json_value()
        check_request(checkpoint, request_of(combination), combination.criterion.name, options)
        compensation_of(combination.compensation).check(checkpoint, *windows, max_memory)
    except InvalidInput as refusal:
        return str(refusal)
    return None


def _check_filled(grid: Grid) -> None:
    for axis in ("layouts", "ratios", "seeds"):
        if not getattr(grid, axis):
            raise InvalidInput(f"{axis}: give at least one")
    if grid.criteria:
        return
    if not grid.methods:
        raise InvalidInput("criteria: give at least one, or a method")
    for axis in ("allocations", "compensations"):
        if getattr(grid, axis):
            raise InvalidInput(f"{axis} go with criteria; name some, or write them into methods")


def _check_known(what: str, given: Sequence[str], known: Sequence[str]) -> None:
    for name in given:
        if name not in known:
            raise InvalidInput(f"{what} {name!r} is unknown; known: {', '.join(known)}")


def _check_once(axis: str, values: tuple[Any, ...]) -> None:
    for number, value in enumerate(values):
        if value in values[:number]:
            shown = getattr(value, "label", value)
            raise InvalidInput(f"{axis}: {shown} is given twice")
