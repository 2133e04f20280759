"""Numbers of methods' options: none that computing cannot hold is taken."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bipline.base.errors import InvalidInput
from bipline.compression.allocation import load_allocation
from bipline.compression.compensation.options import PUBLISHED, CompensationOptions
from bipline.compression.criteria import load_criterion
from bipline.compression.options import BaseOptions, options_from
from bipline.settings.method_names import ALLOCATIONS, CRITERIA


def _kinds() -> Iterator[type[BaseOptions]]:
    for criterion in CRITERIA:
        yield load_criterion(criterion).OPTIONS
    for allocation in ALLOCATIONS:
        yield load_allocation(allocation).OPTIONS
    yield CompensationOptions
    yield from PUBLISHED.values()


NUMBERS = sorted(
    {
        (kind, name)
        for kind in _kinds()
        for name, field in kind.model_fields.items()
        if field.annotation is float
    },
    key=lambda pair: (pair[0].__name__, pair[1]),
)


def test_there_are_such_options() -> None:
    assert (CompensationOptions, "ridge") in NUMBERS and len(NUMBERS) > 10


@pytest.mark.parametrize(("kind", "name"), NUMBERS)
@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e300"])
def test_numbers_are_finite_and_bounded(kind: type[BaseOptions], name: str, value: str) -> None:
    with pytest.raises(InvalidInput, match=f"{name}={value}"):
        options_from(kind, "this method", 0, {name: value})
