"""How much worse one model is than another, with the interval that tells how sure that is.

Perplexities are compared window by window and accuracies row by row, so the interval is that of
paired differences; speeds have the range from the median of the repeats to the best. A change is a
share of the other's value, or a difference where that says more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from bipline.delivery.evidence import Measured
from bipline.values.differences import (
    SHARES_OF_ROWS,
    kind_name,
    outcomes_of,
    paired_outcomes,
)
from bipline.values.figures import Figure, kind_of
from bipline.values.paired import PairedDifference
from bipline.values.record import EvaluationRecord

DIFFERENCES = (*SHARES_OF_ROWS, "nll")
SPEEDS = ("prefill_tokens_per_second", "decode_tokens_per_second")
# Counted, not measured: they have no interval and no protocol.
EXACT = ("parameters", "file_bytes")
# Of means: a record adds nats in another order than their items are added here.
SAME_MEAN = 1e-4


class Unknown(Exception):
    """Why a check cannot tell."""


@dataclass(frozen=True)
class Loss:
    """How much worse one model is than another; ``high`` is the end that hurts."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Side:
    """One of two models that are compared: what it is called, a figure of it, and all behind it."""

    model: str
    figure: Figure
    measured: Measured


def loss_of(one: Side, other: Side, with_interval: bool) -> Loss:
    """How much worse ``one`` is than ``other`` in a figure that both have.

    Raises Unknown where the two do not compare, or an interval is wanted and there is none.
    """
    name = one.figure.name
    kind = kind_name(name)
    _check_comparable(kind, one, other)
    plain = _change(name, one.figure.value, other.figure.value)
    if kind in EXACT or not with_interval:
        return Loss(plain, plain, plain)
    if kind in SPEEDS:
        (slow, best), (slow_other, best_other) = _range(kind, one), _range(kind, other)
        return Loss(plain, _change(name, best, slow_other), _change(name, slow, best_other))
    found = _paired(name, one, other)
    if found.low is None or found.high is None:
        raise Unknown("one pair alone has no interval")
    if kind in SHARES_OF_ROWS:
        return Loss(-found.difference, -found.high, -found.low)
    ends = (found.difference, found.low, found.high)
    return Loss(*ends) if kind == "nll" else Loss(*map(_expm1, ends))


def _check_comparable(kind: str, one: Side, other: Side) -> None:
    if kind in EXACT:
        return
    records = one.measured.record, other.measured.record
    if records[0].protocol_digest != records[1].protocol_digest:
        raise Unknown(f"the {other.model} model was evaluated under another protocol")
    same = ("lm_eval",) if kind in SHARES_OF_ROWS else ()
    for key in ("device", "processor", "threads") if kind in SPEEDS else same:
        mine, its = (record.environment.get(key) for record in records)
        if mine is None or mine != its:
            raise Unknown(f"measured with {key} {mine}, the {other.model} model with {its}")


def _change(name: str, value: float, reference: float) -> float:
    """How much worse a value is: a share of the reference, or a difference."""
    sign = -1 if kind_of(name).better == "higher" else 1
    if kind_name(name) in DIFFERENCES:
        return sign * (value - reference)
    if not reference:
        raise Unknown("the other model's value is zero")
    return sign * (value / reference - 1)


def _range(kind: str, side: Side) -> tuple[float, float]:
    """The range of the repeats: their quartiles where they are known, else from median to best."""
    speed, name = side.measured.record.speed, kind.partition("_")[0]
    best = getattr(speed, kind, math.nan)
    quartiles = getattr(speed, f"{name}_quartiles", None)
    low, high = quartiles or (getattr(speed, f"{name}_median_tokens_per_second", math.nan), best)
    if not 0 < low <= high < math.inf:
        raise Unknown("the range of the repeats is not known")
    return low, high


def _paired(name: str, one: Side, other: Side) -> PairedDifference:
    """The paired difference, ``one`` less ``other``, of items that are the records' own."""
    before, after = _outcomes(name, other), _outcomes(name, one)
    if before.keys() != after.keys():
        raise Unknown(f"its items do not pair with those of the {other.model} model")
    return paired_outcomes(name, before, after)


def _outcomes(name: str, side: Side) -> dict[int, float]:
    """What single windows or rows gave. Raises Unknown where they are not the record's own."""
    if side.measured.items is None:
        raise Unknown(f"the items behind the {side.model} model's record are not at hand")
    if not (found := outcomes_of(side.measured.items, name)):
        raise Unknown(f"the items of the {side.model} model hold nothing of it")
    mean, told = sum(found.values()) / len(found), _mean(side.measured.record, name)
    if not abs(mean - told) <= SAME_MEAN * max(1.0, abs(told)):
        raise Unknown(f"the items of the {side.model} model are not those of its record")
    return found


def _mean(record: EvaluationRecord, name: str) -> float:
    kind, _, subject = name.partition(".")
    if kind in SHARES_OF_ROWS:
        return float(getattr(record.tasks[subject], kind))
    return record.perplexity[subject].nll


def _expm1(nats: float) -> float:
    try:
        return math.expm1(nats)
    except OverflowError:
        return math.inf
