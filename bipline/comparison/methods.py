"""Methods: a criterion, a rule and a compensation, as users name them and as they are carried out.

Written ``flap/uniform/bias``, each part with options of its own (``obs:ridge=0.1``). A part that
is left out is the one that goes with the criterion; what ``auto`` stands for is settled here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from bipline.base.errors import InvalidInput
from bipline.compression.allocate import DEPTH
from bipline.compression.allocation import rule_options
from bipline.compression.auto import AUTO, Method, settled
from bipline.compression.compensation.realise import CompensationRequest
from bipline.compression.criteria import options_of
from bipline.values.combination import NONE, Choice


@dataclass(frozen=True)
class Asked:
    """What was named; None is what goes with the criterion."""

    criterion: Choice
    allocation: Choice | None = None
    compensation: Choice | None = None

    @classmethod
    def parse(cls, text: str) -> Asked:
        """Read ``CRITERION[/ALLOCATION[/COMPENSATION]]``. Raises ValueError for anything else."""
        criterion, *more = (part.strip() for part in text.split("/"))
        if len(more) > 2:
            raise ValueError(f"{text!r}: write CRITERION/ALLOCATION/COMPENSATION")
        rest = (Choice.parse(part) if part else None for part in more)
        return cls(Choice.parse(criterion), *rest)


@dataclass(frozen=True)
class Settled:
    """What is carried out. ``alias`` is the criterion's name where it stands for another."""

    alias: str | None
    criterion: Choice
    allocation: Choice
    compensation: Choice

    @property
    def label(self) -> str:
        """One line that names the method."""
        parts = (self.alias, self.criterion.label, self.allocation.label, self.compensation.label)
        return "/".join(part for part in parts if part)


def methods(texts: Iterable[str]) -> tuple[Asked, ...]:
    """Methods as users write them. Raises InvalidInput for what is none."""
    try:
        return tuple(Asked.parse(text) for text in texts)
    except ValueError as error:
        raise InvalidInput(str(error)) from None


def settle(asked: Asked, layout: str) -> Settled:
    """What a method stands for in a layout.

    Raises InvalidInput for options that ``auto`` does not have.
    """
    criterion, rule, compensation = asked.criterion, asked.allocation, asked.compensation
    named = Method(
        criterion.name,
        criterion.options,
        rule.name if rule else None,
        rule.options if rule else {},
        compensation.name if compensation else None,
        compensation.options if compensation else {},
    )
    method, _ = settled(named, layout)
    scoring = Choice(name=method.criterion, options=dict(method.criterion_options))
    return Settled(
        alias=AUTO if criterion.name == AUTO else None,
        criterion=scoring,
        allocation=Choice(
            name=method.rule or _usual_rule(scoring), options=dict(method.rule_options)
        ),
        compensation=Choice(
            name=method.compensation or NONE, options=dict(method.compensation_options)
        ),
    )


def check_method(method: Settled) -> None:
    """Raise InvalidInput for a part that is unknown, or an option that it does not have."""
    options_of(method.criterion.name, 0, method.criterion.options)
    rule_options(method.allocation.name, 0, method.allocation.options)
    compensation = compensation_of(method.compensation)
    _ = compensation.chosen, compensation.settings


def compensation_of(choice: Choice) -> CompensationRequest:
    """The compensation that a choice asks for."""
    return CompensationRequest(choice.name, choice.options)


def _usual_rule(criterion: Choice) -> str:
    prunes = options_of(criterion.name, 0, criterion.options).prunes
    return "uniform" if prunes == "groups" else DEPTH
