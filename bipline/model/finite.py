"""Weights are numbers: NaN and infinities are refused by the tensor's name, where it is read.

One of them in an embedding or a norm spoils every figure after it, or is hidden until its token
comes. Least and largest are found at the speed of memory, and are NaN where one value is.
"""

from __future__ import annotations

from torch import Tensor

from bipline.base.errors import InvalidInput


def refuse_not_finite(tensor: Tensor, name: str, location: str) -> None:
    """Raise InvalidInput unless every value of what was read of a tensor is finite."""
    if tensor.numel() and not all(bool(end.isfinite()) for end in tensor.aminmax()):
        raise InvalidInput(
            f"{location}: tensor {name} holds NaN or infinity; fetch or convert the model again"
        )
