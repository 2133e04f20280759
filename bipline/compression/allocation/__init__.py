"""Allocation rules: how much does each block lose, and of what? One file each, as ``widths``.

A rule declares its ``OPTIONS``, whether it runs calibration ``WINDOWS``, and, where it cannot
choose uniform widths, why it is ``NOT_UNIFORM``. ``widths(problem, options)`` gives the counts
that every block keeps; which groups these are, the scores say.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, Protocol, cast

from bipline.base.errors import InvalidInput
from bipline.compression.allocation.problem import Problem
from bipline.compression.allocation.widths import Widths
from bipline.compression.options import BaseOptions, options_from

RULES = {
    "block-influence": "block_influence",
    "compensated": "compensated",
    "depth": "depth",
    "error-aware": "error_aware",
    "learned": "learned",
    "log-increase": "log_increase",
    "standardized": "standardized",
    "threshold": "threshold",
    "uniform": "uniform",
}


class Rule(Protocol):
    """What a rule's file holds."""

    OPTIONS: type[BaseOptions]
    WINDOWS: bool
    NOT_UNIFORM: str

    def widths(self, problem: Problem, options: Any) -> list[Widths]:
        """The counts every block keeps; together they meet the budget to within one step."""


def rule_module(rule: str) -> str:
    """The module of a rule, which the stage key follows. Raises InvalidInput if unknown."""
    if rule not in RULES:
        raise InvalidInput(f"allocation {rule!r} is unknown; known: {', '.join(sorted(RULES))}")
    return f"bipline.compression.allocation.{RULES[rule]}"


def load_rule(name: str) -> Rule:
    """The rule of this name. Raises InvalidInput if unknown."""
    module: Any = importlib.import_module(rule_module(name))
    return cast("Rule", module)


def rule_options(rule: str, seed: int = 0, given: Mapping[str, Any] | None = None) -> BaseOptions:
    """A rule's options. Raises InvalidInput for one that does not exist or is out of range."""
    return options_from(load_rule(rule).OPTIONS, f"allocation {rule}", seed, given)
