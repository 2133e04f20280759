"""Paired differences against scipy, numpy and closed cases."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from bipline.values.paired import mcnemar, paired_answers, paired_difference, student_quantile

NUMBERS = st.floats(-100, 100)


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 5, 9, 30, 1000])
def test_quantiles_are_scipys(degrees: int) -> None:
    assert student_quantile(0.975, degrees) == pytest.approx(stats.t.ppf(0.975, degrees), rel=0.01)


@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=2, max_size=40))
def test_interval_is_scipys(pairs: list[tuple[float, float]]) -> None:
    before, after = zip(*pairs, strict=True)
    told = paired_difference(before, after)
    differences = [b - a for a, b in pairs]
    error = stats.sem(differences)
    assert told.difference == pytest.approx(sum(differences) / len(pairs), abs=1e-9)
    assert told.stderr == pytest.approx(error, abs=1e-9)
    assert told.low is not None and told.high is not None
    reach = stats.t.ppf(0.975, len(pairs) - 1) * error
    assert (told.high - told.low) / 2 == pytest.approx(reach, rel=0.01, abs=1e-9)


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_the_binomial_test(lost: int, gained: int) -> None:
    expected = stats.binomtest(lost, lost + gained).pvalue if lost + gained else 1.0
    assert mcnemar(lost, gained) == pytest.approx(expected)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=50))
def test_swapping_the_models_swaps_the_sign(pairs: list[tuple[bool, bool]]) -> None:
    before, after = zip(*pairs, strict=True)
    there, back = paired_answers(before, after), paired_answers(after, before)
    assert there.difference == pytest.approx(-back.difference)
    assert there.p_value == back.p_value
    assert there.is_told == back.is_told


def test_equal_models_differ_in_nothing() -> None:
    told = paired_answers([True, False] * 5, [True, False] * 5)
    assert (told.difference, told.stderr, told.p_value, told.is_told) == (0, 0, 1, False)


def test_one_pair_tells_no_spread() -> None:
    told = paired_difference([1.0], [2.0])
    assert told.difference == 1 and told.stderr is None and not told.is_told


def test_what_does_not_pair_is_an_error() -> None:
    for before, after in (([1.0], [1.0, 2.0]), ([], [])):
        with pytest.raises(ValueError):
            paired_difference(before, after)


def test_a_constant_change_is_told() -> None:
    told = paired_difference([1.0, 2.0, 3.0], [2.0, 3.0, 4.0])
    assert told.is_told and math.isclose(told.difference, 1)
