"""What an FFN's gate makes of what its first two matrices put out, and how far it moves with each.

Most multiply: a(p) q. gpt-oss clamps both to a limit L first, and adds 1 to what is gated:
(min(max(q, -L), L) + 1) p' sigmoid(alpha p') with p' = min(p, L), as transformers'
``GptOssExperts`` has it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bipline.model.activations import activation, value_and_slope


@dataclass(frozen=True)
class Gating:
    """A gate with the activation of this name; or a clamped one, by ``alpha`` and ``limit``."""

    hidden_act: str = "silu"
    clamped: tuple[float, float] | None = None

    @classmethod
    def of(cls, hidden_act: str, keys: Sequence[str], config: Mapping[str, Any]) -> Gating:
        """The gate of a model with this config, whose ``keys`` say alpha and the limit, if any."""
        if not keys:
            return cls(hidden_act)
        alpha, limit = (float(config[key]) for key in keys)
        return cls(hidden_act, (alpha, limit))

    def value(self, gate: Tensor, up: Tensor) -> Tensor:
        """What enters down_proj, from what gate and up put out: ``[tokens, f]`` each."""
        if self.clamped is None:
            return activation(self.hidden_act)(gate) * up
        alpha, limit = self.clamped
        held = gate.clamp(max=limit)
        return (up.clamp(-limit, limit) + 1) * held * torch.sigmoid(alpha * held)

    def slopes(self, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
        """How far that moves with ``up``, and with ``gate``."""
        if self.clamped is None:
            value, slope = value_and_slope(self.hidden_act, gate)
            return value, slope * up
        with torch.enable_grad():
            leaves = [each.detach().clone().requires_grad_() for each in (up, gate)]
            value = self.value(leaves[1], leaves[0])
            of_up, of_gate = torch.autograd.grad(value.sum(), leaves)
        return of_up, of_gate
