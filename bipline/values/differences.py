"""What two records differ in: pair by pair on the same windows and rows, by the figures' names.

Records under different protocols do not compare: the first field that differs is named.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from bipline.base.errors import Refused
from bipline.values.items import TaskItem
from bipline.values.paired import PairedDifference, paired_answers, paired_difference
from bipline.values.record import EvaluationRecord

# What of the libraries decides a task's prompts, metrics and truncation.
TASK_LIBRARY = "lm_eval"
NOT_TOLD = "not told"


def check_comparable(before: EvaluationRecord, after: EvaluationRecord) -> None:
    """Raise Refused with the first field in which two protocols differ, and both values."""
    for field, (one, other) in _fields(before, after).items():
        if one != other:
            raise Refused(
                f"the records do not compare: {field} is {one} in one and {other} in the other; "
                "measure both under one protocol"
            )


def paired_differences(
    before: EvaluationRecord, after: EvaluationRecord
) -> dict[str, PairedDifference]:
    """``nll.TEXT``, ``acc.TASK`` and ``acc_norm.TASK``: after less before.

    For each that both have items of, as many and the same; others are left out.
    """
    if before.items is None or after.items is None:
        return {}
    found = {}
    for text, windows in before.items.windows.items():
        other = after.items.windows.get(text, ())
        if len(windows) == len(other) > 0:
            found[f"nll.{text}"] = paired_difference(windows, other)
    for task, items in before.items.tasks.items():
        found |= _of_task(task, items, after.items.tasks.get(task, ()))
    return found


def _of_task(
    task: str, before: tuple[TaskItem, ...], after: tuple[TaskItem, ...]
) -> dict[str, PairedDifference]:
    """Rows that one of the models could not be asked are in neither."""
    others = {item.row: item for item in after}
    pairs = [(item, others[item.row]) for item in before if item.row in others]
    if not pairs:
        return {}
    right = [(one.is_right, other.is_right) for one, other in pairs]
    found = {f"acc.{task}": paired_answers(*zip(*right, strict=True))}
    if all(one.choice_norm is not None for one, _ in pairs):
        norm = [(one.is_right_norm, other.is_right_norm) for one, other in pairs]
        found[f"acc_norm.{task}"] = paired_answers(*zip(*norm, strict=True))
    return found


def _fields(before: EvaluationRecord, after: EvaluationRecord) -> dict[str, tuple[Any, Any]]:
    """Every field of either protocol with both values, in the order of its declaration."""
    one, other = dict(_flat(before.protocol)), dict(_flat(after.protocol))
    names = [*one, *(name for name in other if name not in one)]
    found = {name: (one.get(name, NOT_TOLD), other.get(name, NOT_TOLD)) for name in names}
    if before.tasks or after.tasks:
        library = [record.environment.get(TASK_LIBRARY, NOT_TOLD) for record in (before, after)]
        found[f"the version of {TASK_LIBRARY}"] = library[0], library[1]
    return found


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, part in value.items():
        if isinstance(part, Mapping):
            yield from _flat(part, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", part
