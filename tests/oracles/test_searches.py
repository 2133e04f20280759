"""Searches over masks: what every one of them promises."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bipline.base.errors import InvalidInput
from bipline.compression.criteria import options_of
from bipline.compression.criteria.search import batches_of
from bipline.compression.score import compute_scores
from bipline.model.opening import open_checkpoint
from tests.searches import SMALL, WINDOWS, searched


@pytest.mark.parametrize("criterion", sorted(SMALL))
def test_a_search_that_starts_again_ends_with_the_same_bytes(
    family_model: Path, criterion: str
) -> None:
    statistics, first = searched(family_model, criterion, **SMALL[criterion])
    _, again = searched(family_model, criterion, **SMALL[criterion])
    _, other = searched(family_model, criterion, seed=1, **SMALL[criterion])
    differences = 0
    for one, two, three in zip(first.blocks, again.blocks, other.blocks, strict=True):
        for name, tensor in one.tensors().items():
            assert tensor.equal(two.tensors()[name])
            differences += int((tensor != three.tensors()[name]).sum())
    assert differences
    assert statistics.blocks == ({}, {})
    assert (statistics.calibration_digest, statistics.dtype) == ("windows", "float32")
    with pytest.raises(InvalidInput, match=r"search over the whole model.* score again"):
        compute_scores(open_checkpoint(family_model), statistics, criterion, options_of(criterion))


@pytest.mark.parametrize("criterion", sorted(SMALL))
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tokens": 10}, "tokens=10: one step of the search runs 96 tokens"),
        ({"initial": "bi-level"}, "is itself a search"),
        ({"initial": "best"}, "criterion 'best' is unknown"),
        ({"ratio": 1.0}, "option ratio=1.0"),
    ],
)
def test_senseless_options(
    llama: Path, criterion: str, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidInput, match=message):
        searched(llama, criterion, **given)


def test_every_window_comes_once_before_any_comes_again() -> None:
    batches = list(batches_of(WINDOWS, 2, 6, seed=3))
    for epoch in (batches[:3], batches[3:]):
        assert sorted(torch.cat(epoch).tolist()) == sorted(WINDOWS.tolist())
    assert len(next(batches_of(WINDOWS, 100, 1, seed=0))) == len(WINDOWS)
