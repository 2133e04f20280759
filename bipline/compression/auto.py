"""``auto``, and every part that is not named: what it stands for.

What auto chooses and why is told by docs/auto.md, with the figures that it was chosen by. A part
that is named by the user stays as named.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from bipline.base.errors import InvalidInput
from bipline.compression.allocate import usual_allocation
from bipline.compression.allocation import allocation_options
from bipline.compression.compensation.checks import options_by_name
from bipline.compression.criteria import CRITERIA, options_of
from bipline.compression.efforts import of_effort
from bipline.compression.target_format import with_target_format
from bipline.settings.line import USUAL_EFFORT, Effort, LineSettings
from bipline.storage.directory import occupied
from bipline.values.combination import NONE, UNIFORM, Choice, Method

AUTO = "auto"
CHOSEN = Method(
    criterion=Choice(name="llm-bip-glu"),
    allocation=Choice(name="compensated"),
    compensation=Choice(name="obs"),
    alias=AUTO,
)
# A mixture's: no experts are known to compensated and to obs.
OF_EXPERTS = CHOSEN.model_copy(
    update={"allocation": Choice(name=UNIFORM), "compensation": Choice(name="least-squares")}
)
REASON = (
    "auto: {} scores, {} splits, {} corrects; chosen by the perplexity that was left on two models "
    "(docs/auto.md)"
)
REASON_OF_EXPERTS = (
    "auto: {} scores, {} splits, {} corrects; of a mixture of experts, which compensated and obs "
    "do not know (docs/auto.md)"
)

Line = TypeVar("Line", bound=LineSettings)


def settle(
    method: Method, layout: str, effort: Effort = USUAL_EFFORT, experts: bool = False
) -> tuple[Method, str]:
    """The method with every part named, and why; the reason is empty unless ``auto`` chose.

    An effort sets options of the parts that know it. What auto stands for may differ between the
    layouts; so far it does not. ``experts``: whether the model is a mixture of them.
    Raises InvalidInput for a part that is unknown, for an option that it does not have, and for
    options of a criterion that ``auto`` chooses.
    """
    usual = _usual(method.criterion, experts)
    allocation = method.allocation or usual.allocation
    compensation = method.compensation or usual.compensation
    assert allocation and compensation  # noqa: S101
    allocation_options(allocation.name, 0, allocation.options)
    options_by_name(compensation.name, compensation.options)
    settled = Method(
        criterion=usual.criterion,
        allocation=allocation,
        compensation=compensation,
        alias=usual.alias or method.alias,
    )
    settled = of_effort(settled, layout, effort)
    if usual.alias is None:
        return settled, ""
    reason = REASON_OF_EXPERTS if experts else REASON
    return settled, reason.format(settled.criterion.name, allocation.name, compensation.name)


def settled_settings(settings: Line, experts: bool = False) -> tuple[Line, str]:
    """The same for settings; where nothing is scored, ``auto`` brings nothing with it.

    Raises InvalidInput as :func:`settle` does.
    """
    layout = settings.allocate.layout
    method, reason = settle(method_of(settings, experts), layout, settings.effort, experts)
    settled = _with_method(settings, method)
    return settled.model_copy(update={"allocate": with_target_format(settled)}), reason


def method_of(settings: LineSettings, experts: bool = False) -> Method:
    """What is scored, allocated and compensated by, as settings name it."""
    score, allocate, compensate = settings.score, settings.allocate, settings.compensate
    criterion = Choice(name=score.criterion, options=score.criterion_option)
    if criterion.name == AUTO and applies(settings):
        criterion = Choice(name=CHOSEN.criterion.name, options=criterion.options)

    def choice(name: str | None, options: dict[str, Any], part: str) -> Choice | None:
        """None where nothing is named; options alone are of the part that is used then."""
        if name is None and options:
            name = getattr(_usual(criterion, experts), part).name
        return None if name is None else Choice(name=name, options=options)

    return Method(
        criterion=criterion,
        allocation=choice(allocate.allocation, allocate.allocation_option, "allocation"),
        compensation=choice(
            compensate.compensation, compensate.compensation_option, "compensation"
        ),
    )


def applies(settings: LineSettings) -> bool:
    """Whether a plan is given, by itself or with corrections that are there: nothing is scored.

    With a ratio, corrections are what this very run is to write.
    """
    allocate, corrections = settings.allocate, settings.compensate.corrections
    if allocate.plan is not None or corrections is None:
        return allocate.plan is not None
    return not allocate.budget_is_given and occupied(Path(corrections))


def _usual(criterion: Choice, experts: bool) -> Method:
    """The method where only a criterion is named. Raises InvalidInput for an unknown one."""
    if criterion.name not in (AUTO, *CRITERIA):
        known = ", ".join((AUTO, *sorted(CRITERIA)))
        raise InvalidInput(f"criterion {criterion.name!r} is unknown; known: {known}")
    if criterion.name != AUTO:
        prunes = options_of(criterion.name, 0, criterion.options).prunes
        allocation = Choice(name=usual_allocation(prunes))
        return Method(criterion=criterion, allocation=allocation, compensation=Choice(name=NONE))
    if criterion.options:
        raise InvalidInput("criterion auto has no options of its own; name a criterion to set them")
    return OF_EXPERTS if experts else CHOSEN


def _with_method(settings: Line, method: Method) -> Line:
    """Settings that name a method's parts."""
    updates: dict[str, Any] = {}
    for section, part in (
        ("score", "criterion"), ("allocate", "allocation"), ("compensate", "compensation"),
    ):  # fmt: skip
        choice = getattr(method, part)
        named = {part: choice.name, f"{part}_option": choice.options}
        updates[section] = getattr(settings, section).model_copy(update=named)
    return settings.model_copy(update=updates)
