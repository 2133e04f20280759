"""What two records differ in: pair by pair on the same windows and rows, by the figures' names.

Records under different protocols do not compare: the first field that differs is named.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from bipline.base.errors import Refused
from bipline.values.items import EvaluationItems
from bipline.values.paired import PairedDifference, paired_answers, paired_difference
from bipline.values.record import EvaluationRecord

# What of the libraries decides a task's prompts, metrics and truncation.
TASK_LIBRARY = "lm_eval"
NOT_TOLD = "not told"
# Of zeros and ones by row; they pair with McNemar's test.
SHARES_OF_ROWS = ("acc", "acc_norm")


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

    Of windows where both have as many, of rows those that both could be asked; others are left out.
    """
    if before.items is None or after.items is None:
        return {}
    found = {}
    for name in _names(before.items):
        one, other = outcomes_of(before.items, name), outcomes_of(after.items, name)
        if kind_name(name) == "nll" and one.keys() != other.keys():
            continue
        if common := one.keys() & other.keys():
            parts = ({row: part[row] for row in common} for part in (one, other))
            found[name] = paired_outcomes(name, *parts)
    return found


def paired_outcomes(
    name: str, before: Mapping[int, float], after: Mapping[int, float]
) -> PairedDifference:
    """After less before, of the same windows or rows by their number; of answers with McNemar's p.

    Raises ValueError where they are not the same, or there are none.
    """
    if before.keys() != after.keys():
        raise ValueError(f"{name}: other windows or rows")
    pairs = [[part[number] for number in sorted(part)] for part in (before, after)]
    if kind_name(name) in SHARES_OF_ROWS:
        return paired_answers(*([bool(each) for each in part] for part in pairs))
    return paired_difference(*pairs)


def outcomes_of(items: EvaluationItems, name: str) -> dict[int, float]:
    """What single windows or rows gave of a figure, by their number; nothing where one tells none.

    Of a window the mean nats of its tokens; of a row 1 for a right answer and 0 for a wrong one.
    """
    kind, _, subject = name.partition(".")
    if kind not in SHARES_OF_ROWS:
        return dict(enumerate(items.windows.get(subject, ())))
    rows = items.tasks.get(subject, ())
    if kind == "acc":
        return {row.row: float(row.is_right) for row in rows}
    if any(row.choice_norm is None for row in rows):
        return {}
    return {row.row: float(row.is_right_norm) for row in rows}


def kind_name(figure: str) -> str:
    """The kind of a figure: what stands before the dot of its name."""
    return figure.partition(".")[0]


def _names(items: EvaluationItems) -> list[str]:
    """The figures that items are of."""
    of_tasks = [f"{kind}.{task}" for task in items.tasks for kind in SHARES_OF_ROWS]
    return [*(f"nll.{text}" for text in items.windows), *of_tasks]


def _fields(before: EvaluationRecord, after: EvaluationRecord) -> dict[str, tuple[Any, Any]]:
    """Every field of either protocol with both values, in the order of its declaration."""
    one, other = dict(_flat(before.protocol)), dict(_flat(after.protocol))
    names = [*one, *(name for name in other if name not in one)]
    # A setting at its default is not in a protocol; the record may tell it all the same.
    found = {
        name: (one.get(name, _told(before, name)), other.get(name, _told(after, name)))
        for name in names
    }
    if before.tasks or after.tasks:
        library = [record.environment.get(TASK_LIBRARY, NOT_TOLD) for record in (before, after)]
        found[f"the version of {TASK_LIBRARY}"] = library[0], library[1]
    return found


def _told(record: EvaluationRecord, name: str) -> Any:
    value = {"stride": record.stride, "fewshot_seed": record.seed}.get(name)
    return NOT_TOLD if value is None else value


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, part in value.items():
        if isinstance(part, Mapping):
            yield from _flat(part, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", part
