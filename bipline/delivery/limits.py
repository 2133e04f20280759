"""Limits of a gate: one figure held against a bound, alone or beside another model's.

A loss is judged by the end of its interval that hurts (:mod:`bipline.delivery.losses`). Where a
figure was not measured, is no number, or has nothing to be judged by, the check cannot tell.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from bipline.delivery.evidence import Measured
from bipline.delivery.losses import SPEEDS, Side, Unknown, loss_of
from bipline.settings.gate import EVERY, Limit
from bipline.values.differences import SHARES_OF_ROWS, kind_name
from bipline.values.figures import (
    FORMAT_TEXT_FIGURES,
    Figure,
    figures_of,
    format_figures,
    kind_of,
    label_of,
)
from bipline.values.verdict import Answer, Check, Number

# Figures that are changes against dense themselves, and what they are changes of.
INCREASES = {"perplexity_increase": "perplexity", "nll_increase": "nll"}
# Below these no figure of the kind can be; of all others, below zero.
LOWEST = {
    "parameters": 1.0, "file_bytes": 1.0, "parameters_ratio": sys.float_info.min,
    "perplexity": 1.0, "perplexity_increase": -1.0, "nll_increase": -math.inf,
    "format_bytes": 1.0, "format_perplexity": 1.0, "format_perplexity_increase": -1.0,
    **dict.fromkeys(SPEEDS, sys.float_info.min),
}  # fmt: skip


@dataclass(frozen=True)
class Subjects:
    """Models by what limits call them: ``packaged``, ``dense`` and, where there is one, champion.

    ``absent`` says why a model is not among them. With ``first_champion`` there is none yet, and
    the gate does not mind.
    """

    models: Mapping[str, Measured]
    absent: Mapping[str, str] = field(default_factory=dict)
    first_champion: bool = False

    def side(self, model: str, name: str, numbers: dict[str, Number]) -> Side:
        """A model's figure of this name. Raises Unknown for one that cannot be a value of it."""
        figure = self._figures(model).get(name)
        if figure is None:
            raise Unknown(f"not measured of the {model} model")
        numbers[model] = number(figure.value)
        kind = kind_name(name)
        highest = 1.0 if kind in SHARES_OF_ROWS else math.inf
        if not (math.isfinite(figure.value) and LOWEST.get(kind, 0.0) <= figure.value <= highest):
            raise Unknown(f"{figure.value:g}, of the {model} model, is no value that it can have")
        return Side(model, figure, self.models[model])

    def _figures(self, model: str) -> Mapping[str, Figure]:
        if model not in self.models:
            raise Unknown(self.absent.get(model, f"there is no record of the {model} model"))
        dense = self.models.get("dense") if model == "packaged" else None
        try:
            measured = self.models[model]
            own = figures_of(measured.record, dense.record if dense else None)
            return {**own, **format_figures(measured.exports)}
        except (ArithmeticError, ValueError):
            raise Unknown(f"figures of the {model} model are beyond all numbers") from None


def limit_checks(limit: Limit, subjects: Subjects) -> Iterator[Check]:
    """A check for every figure that a limit names."""
    limit = _against_dense(limit)
    names = sorted(_names(limit, subjects))
    if limit.against == "champion" and subjects.first_champion:
        told = "there is no champion yet, and the gate lets a first one through"
        yield _check(limit, limit.figure, "pass", told, {"bound": _bound(limit)})
        return
    for name in names:
        yield _checked(limit, name, subjects)
    if not names:
        told = f"{limit.figure}: nothing of the kind was measured"
        yield _check(limit, limit.figure, "cannot tell", told, {"bound": _bound(limit)})


def number(value: float) -> Number:
    """A number as JSON can hold it: NaN and infinities as text."""
    return value if math.isfinite(value) else str(value)


def _against_dense(limit: Limit) -> Limit:
    """A limit on an increase as one against dense, so that it is judged by its interval."""
    kind, dot, subject = limit.figure.partition(".")
    if kind not in INCREASES or limit.at_most is None:
        return limit
    # A bound below zero asks for a gain, and is kept as it is.
    bounds = {"at_most": None, "worse_at_most": limit.at_most, "against": "dense"}
    return limit.model_copy(update={**bounds, "figure": f"{INCREASES[kind]}{dot}{subject}"})


def _names(limit: Limit, subjects: Subjects) -> set[str]:
    """The figures that a limit is on: of ``*`` all that any of the models has, or was to have."""
    kind, _, subject = limit.figure.partition(".")
    if kind in FORMAT_TEXT_FIGURES and subject.endswith(f".{EVERY}"):
        packaged, stem = subjects.models.get("packaged"), limit.figure.removesuffix(EVERY)
        return {f"{stem}{text}" for text in (packaged.record.perplexity if packaged else ())}
    if subject != EVERY:
        return {limit.figure}
    on_tasks, found = kind in SHARES_OF_ROWS, set[str]()
    for model in ("packaged", "dense", *([limit.against] if limit.against else [])):
        if model in subjects.models:
            record = subjects.models[model].record
            found |= {*(record.tasks if on_tasks else record.perplexity)}
            found |= {*(record.protocol.get("tasks" if on_tasks else "texts") or ())}
    if kind == "acc_norm":  # which not every task has
        found = {each for each in found if _has_norm(subjects, each)}
    return {f"{kind}.{each}" for each in found}


def _has_norm(subjects: Subjects, task: str) -> bool:
    results = [each.record.tasks.get(task) for each in subjects.models.values()]
    return any(result and result.acc_norm is not None for result in results)


def _checked(limit: Limit, name: str, subjects: Subjects) -> Check:
    numbers: dict[str, Number] = {"bound": _bound(limit)}
    try:
        side = subjects.side("packaged", name, numbers)
        if limit.against is None:
            answer, told = _alone(limit, side.figure)
        else:
            other = subjects.side(limit.against, name, numbers)
            answer, told = _beside(limit, side, other, numbers)
    except Unknown as reason:
        answer, told = "cannot tell", str(reason)
    return _check(limit, name, answer, f"{label_of(name)}: {told}", numbers)


def _alone(limit: Limit, figure: Figure) -> tuple[Answer, str]:
    show, bound = kind_of(figure.name).text, _bound(limit)
    most = limit.at_most is not None
    holds = figure.value <= bound if most else figure.value >= bound
    asked = f"asked is {'at most' if most else 'at least'} {show(bound)}"
    return "pass" if holds else "fail", f"{show(figure.value)}; {asked}"


def _beside(limit: Limit, one: Side, other: Side, numbers: dict[str, Number]) -> tuple[Answer, str]:
    name, show = one.figure.name, kind_of(one.figure.name).text
    loss = loss_of(one, other, limit.judged_by == "interval")
    ends = {"loss": loss.value, "loss_low": loss.low, "loss_high": loss.high}
    numbers |= {end: number(value) for end, value in ends.items()}
    if not all(map(math.isfinite, ends.values())):
        raise Unknown(f"its change against the {other.model} model is no number")
    worse, bound = limit.worse_at_most is not None, _bound(limit)
    change = loss.high if worse else -loss.high
    holds = change <= bound if worse else change >= bound
    told = f"{show(one.figure.value)} beside {show(other.figure.value)} of {other.model}, "
    told += "at worst " if loss.high != loss.low else ""
    told += f"{_shown(name, abs(loss.high))} {'worse' if loss.high > 0 else 'better'}; asked is "
    told += f"at most {_shown(name, bound)} worse" if worse else f"{_shown(name, bound)} better"
    return "pass" if holds else "fail", told


def _bound(limit: Limit) -> float:
    bounds = (limit.at_most, limit.at_least, limit.worse_at_most, limit.better_at_least)
    return next(bound for bound in bounds if bound is not None)


def _check(
    limit: Limit, figure: str, answer: Answer, sentence: str, numbers: dict[str, Number]
) -> Check:
    name = f"{figure} against {limit.against}" if limit.against else figure
    return Check(name=name, answer=answer, numbers=numbers, sentence=sentence)


def _shown(name: str, change: float) -> str:
    """A change for reading."""
    kind = kind_name(name)
    if kind in SHARES_OF_ROWS:
        return f"{100 * change:.2f} points"
    return f"{change:.4f} nats" if kind == "nll" else f"{100 * change:.2f} %"
