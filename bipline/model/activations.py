"""The activation between a gate and its product, by transformers' name, and its derivative.

A criterion that looks through the FFN must look through the function that the model has. SiLU,
which nearly every model has, keeps its own formulas; every other function is transformers', and
its derivative is taken by automatic differentiation, so that no second formula can be wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

SILU = frozenset({"silu", "swish"})


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """The function of this name, element by element."""
    if name in SILU:
        return torch.nn.functional.silu
    from transformers.activations import ACT2FN

    found: Any = ACT2FN[name]
    return lambda values: found(values)


def value_and_slope(name: str, values: Tensor) -> tuple[Tensor, Tensor]:
    """The function of this name and its derivative, element by element."""
    if name in SILU:
        sigmoid = values.sigmoid()
        silu = values * sigmoid
        return silu, torch.addcmul(sigmoid, silu, 1 - sigmoid)
    with torch.enable_grad():
        leaf = values.detach().requires_grad_(True)
        value = activation(name)(leaf)
        (slope,) = torch.autograd.grad(value.sum(), leaf)
    # The identity gives its argument itself, and whoever asked may write into what comes back.
    return value.detach().clone(), slope.clone()
