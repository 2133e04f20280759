"""What a step takes beside its products: norms, activations, copies, in proportion to them.

The shares are measured (``benchmarks.forecasts``).
"""

from __future__ import annotations

from bipline.model.floor import Rates, Work

# Of the products' time in float32, and as long in bfloat16, where only products are quicker.
BESIDE_PRODUCTS = 0.4
# The same beside the products of steps for kept rows, times hidden_size: each of their outputs is
# gone over as often whatever it is summed of.
BESIDE_STEPS = 100.0


def seconds_beside(work: Work, rates: Rates, hidden_size: int) -> float:
    """Seconds beside the products of some work on a model of this hidden size."""
    share = BESIDE_PRODUCTS * (work.operations - work.quick)
    share += BESIDE_STEPS / hidden_size * work.quick
    return share / rates.in_float32
