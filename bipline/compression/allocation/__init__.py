"""Allocations: how much does each block lose, and of what? One file each, as ``widths``.

Each declares its ``OPTIONS``, whether it runs calibration ``WINDOWS``, and, where it cannot choose
uniform widths, why it is ``NOT_UNIFORM``. Where it chooses how many experts stay, its file says
``EXPERTS = True``, and ``EXPERT_CHANNELS = True`` where it chooses how many channels of every
expert; where query heads may go in place of groups, its options are
:class:`.attention_units.AttentionOptions`.
``operations(shape, options, windows, seqlen)`` counts what it runs, where that is no single pass;
``BACKWARD_WINDOWS`` are those that it runs backward through the whole model together.
``widths(problem, options)`` gives the counts that every block keeps; which
groups these are, the scores say.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, Protocol, cast

from bipline.base.errors import InvalidInput
from bipline.compression.allocation.problem import Problem
from bipline.compression.allocation.widths import Widths
from bipline.compression.declared import declaring
from bipline.compression.options import BaseOptions, options_from
from bipline.model.shapes import ModelShape
from bipline.settings.method_names import ALLOCATIONS


class Allocation(Protocol):
    """What an allocation's file holds."""

    OPTIONS: type[BaseOptions]
    WINDOWS: bool
    NOT_UNIFORM: str

    def widths(self, problem: Problem, options: Any) -> list[Widths]:
        """The counts every block keeps; together they meet the budget to within one step."""


def allocation_module(name: str) -> str:
    """The module of an allocation, which the stage key follows. Raises InvalidInput if unknown."""
    if name not in ALLOCATIONS:
        known = ", ".join(sorted(ALLOCATIONS))
        raise InvalidInput(f"allocation {name!r} is unknown; known: {known}")
    return f"bipline.compression.allocation.{ALLOCATIONS[name]}"


def load_allocation(name: str) -> Allocation:
    """The allocation of this name. Raises InvalidInput if unknown."""
    module: Any = importlib.import_module(allocation_module(name))
    return cast("Allocation", module)


def check_counts_experts(name: str, shape: ModelShape) -> None:
    """Raise InvalidInput where an FFN has experts and an allocation knows channels alone.

    Or where channels of every expert go (``shape.within_experts``), and it knows whole ones alone.
    """
    if (
        shape.num_experts
        and shape.within_experts
        and not declaring("EXPERT_CHANNELS", [name], load_allocation)
    ):
        able = declaring("EXPERT_CHANNELS", ALLOCATIONS, load_allocation)
        raise InvalidInput(
            f"of_experts channels: allocation {name} cannot say how many channels of every expert "
            f"stay; those that can: {', '.join(able)}"
        )
    if shape.num_experts and not declaring("EXPERTS", [name], load_allocation):
        able = declaring("EXPERTS", ALLOCATIONS, load_allocation)
        raise InvalidInput(
            f"allocation {name} cannot say how many experts stay, of which this model's FFNs are "
            f"made; those that can: {', '.join(able)}; with auto name one of them, and "
            "compensation least-squares"
        )


def allocation_options(
    name: str, seed: int = 0, given: Mapping[str, Any] | None = None
) -> BaseOptions:
    """Its options. Raises InvalidInput for one that does not exist or is out of range."""
    return options_from(load_allocation(name).OPTIONS, f"allocation {name}", seed, given)
