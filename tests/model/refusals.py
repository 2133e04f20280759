"""How a refusal reads: one line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


def refusal(expected: type[Exception], call: Callable[..., Any], *arguments: Any) -> str:
    """The one line a call is refused with."""
    with pytest.raises(expected) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)
