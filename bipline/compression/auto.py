"""``auto``: the criterion, allocation and compensation that are used where none is named.

What is chosen and why is told by docs/auto.md, with the figures that it was chosen by. A part
that is named by the user stays as named.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from bipline.base.errors import InvalidInput
from bipline.compression.compensation.realise import CompensationRequest
from bipline.compression.criteria import CRITERIA

AUTO = "auto"


@dataclass(frozen=True)
class Method:
    """How a model is pruned: what scores groups, what sets widths, what corrects the rest.

    A ``rule`` or ``compensation`` of None is the one that goes with the criterion.
    """

    criterion: str
    criterion_options: Mapping[str, Any] = field(default_factory=dict)
    rule: str | None = None
    rule_options: Mapping[str, Any] = field(default_factory=dict)
    compensation: str | None = None
    compensation_options: Mapping[str, Any] = field(default_factory=dict)

    def without_auto(self) -> Method:
        """The same where nothing is scored: ``auto`` then brings nothing with it."""
        return replace(
            self, criterion=CHOSEN.criterion if self.criterion == AUTO else self.criterion
        )

    @property
    def request(self) -> CompensationRequest:
        """The compensation that is asked for."""
        return CompensationRequest(self.compensation or "none", self.compensation_options)


CHOSEN = Method(criterion="llm-bip-glu", rule="compensated", compensation="obs")
REASON = (
    "auto: {criterion} scores, {rule} splits, {compensation} corrects; chosen by the perplexity "
    "that was left on two models (docs/auto.md)"
)


def settled(method: Method, layout: str = "uniform") -> tuple[Method, str]:
    """The method with ``auto`` replaced by what it stands for, and the reason; else as it is.

    What it stands for may differ between the layouts. Raises InvalidInput for an unknown
    criterion, and for options of one that ``auto`` chooses.
    """
    if method.criterion not in (AUTO, *CRITERIA):
        known = ", ".join((AUTO, *sorted(CRITERIA)))
        raise InvalidInput(f"criterion {method.criterion!r} is unknown; known: {known}")
    if method.criterion != AUTO:
        return replace(method, compensation=method.compensation or "none"), ""
    if method.criterion_options:
        raise InvalidInput("criterion auto has no options of its own; name a criterion to set them")
    chosen = replace(
        CHOSEN,
        rule=method.rule or CHOSEN.rule,
        rule_options=method.rule_options,
        compensation=method.compensation or CHOSEN.compensation,
        compensation_options=method.compensation_options,
    )
    return chosen, REASON.format(**vars(chosen))
