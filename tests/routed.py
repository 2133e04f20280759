"""Mixtures of experts without some of them, by the router and not by slicing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor


class _Routed(torch.Tensor):
    """A router's matrix whose products have -inf at the experts that are gone."""

    gone: Tensor

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [each.as_subclass(Tensor) if isinstance(each, cls) else each for each in args]
        found = func(*given, **(kwargs or {}))
        if func is not torch.nn.functional.linear:
            return found
        [matrix] = [each for each in args if isinstance(each, cls)]
        return found.masked_fill(matrix.gone, -torch.inf)


def without_experts(router: Any, kept: Tensor) -> None:
    """Give the router's logits -inf at all experts but these; whatever it makes of them follows."""
    gone = torch.ones(len(router.weight), dtype=torch.bool)
    gone[kept] = False
    if hasattr(router, "e_score_correction_bias"):
        router.e_score_correction_bias[gone] = -torch.inf  # which decides, whatever the logit is
        return
    weight = router.weight.detach().as_subclass(_Routed)
    weight.gone = gone
    del router.weight
    router.weight = weight


def with_unused_expert(model: Path, expert: int) -> Path:
    """The model with routers that send no token there: two experts always lie above it."""
    path = model / "model.safetensors"
    held = load_file(path)
    for name, rows in held.items():
        if name.endswith(".gate.weight"):
            # Of two opposite rows one gives at least 0, which a row of zeros never exceeds.
            rows[expert] = 0
            places = [place for place in range(len(rows)) if place != expert]
            rows[places[1]], rows[places[3]] = -rows[places[0]], -rows[places[2]]
    save_file(held, path, {"format": "pt"})
    return model
