"""Operations of scoring: its passes, and what a criterion does beside them on every token."""

from __future__ import annotations

from typing import Any

from bipline.compression.criteria import load_criterion
from bipline.model.floor import GRADIENT_HEADS, Counted, forward_operations, head_operations
from bipline.model.shapes import ModelShape


def scoring_operations(
    criterion: str, options: Any, shape: ModelShape, windows: int, seqlen: int
) -> Counted:
    """What scoring on so many windows of ``seqlen`` tokens comes to, in floating-point operations.

    Where gradients are needed every block runs again on the way back. The scores that a search
    starts from are counted with it. Raises InvalidInput for an unknown criterion.
    """
    module: Any = load_criterion(criterion)
    passes, heads = module.NEEDS.passes, 0
    if passes and module.NEEDS.backward:
        passes, heads = passes + 1, GRADIENT_HEADS
    forward, head = (
        count(shape, windows, seqlen) for count in (forward_operations, head_operations)
    )
    total = Counted(passes * forward + heads * head)
    if initial := getattr(options, "initial", None):
        start = load_criterion(initial).OPTIONS()
        total += scoring_operations(initial, start, shape, windows, seqlen)
    if counts := getattr(module, "operations", None):
        total += counts(shape, options, windows, seqlen)
    return total
