"""What a step takes beside its products: norms, activations, copies, in proportion to them.

The numbers are measured (``benchmarks.forecasts``).
"""

from __future__ import annotations

from bipline.model.floor import Rates, Work

# How many numbers are gone over for every operation of a product, in the time that an activation
# takes for one; as long in bfloat16, where only products are quicker.
BESIDE_PRODUCTS = 0.0075
# The same for the products of steps for kept rows, times hidden_size: each of their outputs is gone
# over as often whatever it is summed of.
BESIDE_STEPS = 1.9
# Operations of products in float32 in the time of one number, where that was not measured.
OPERATIONS_PER_NUMBER = 53.0


def seconds_beside(work: Work, rates: Rates, hidden_size: int) -> float:
    """Seconds beside the products of some work on a model of this hidden size."""
    numbers = BESIDE_PRODUCTS * (work.operations - work.quick)
    numbers += BESIDE_STEPS / hidden_size * work.quick
    return numbers / (rates.activated or rates.in_float32 / OPERATIONS_PER_NUMBER)
