"""Slopes of an FFN: how far what enters down_proj moves with what its first matrices put out."""

from __future__ import annotations

from torch import Tensor

from bipline.model.activations import value_and_slope

UP, GATE = "mlp.up_proj.weight", "mlp.gate_proj.weight"


def slopes(hidden_act: str, up: Tensor, gate: Tensor | None = None) -> dict[str, Tensor]:
    """By matrix, from the outputs of up_proj and of gate_proj: ``[tokens, f]`` each.

    Behind a gate a(p) q these are a(p) and a'(p) q; without one a(q) has the slope a'(q).
    """
    if gate is None:
        return {UP: value_and_slope(hidden_act, up)[1]}
    value, slope = value_and_slope(hidden_act, gate)
    return {UP: value, GATE: slope.mul_(up)}
