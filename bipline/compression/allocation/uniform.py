"""``uniform``: every block keeps the same number of attention groups and of FFN channels.

Groups cut = round(ratio * groups), at most groups - 1; then the FFN loses the fewest multiples
of ``ffn_multiple`` that reach the ratio. The result is a plain transformers checkpoint. With one
KV head (MQA) attention stays and the FFN takes all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from bipline.artifacts.errors import InvalidInput
from bipline.model.families import ModelShape

LARGEST_MULTIPLE = 128
# A multiple coarser than this share of a block would overshoot the ratio noticeably.
MULTIPLE_SHARE = 0.01


@dataclass(frozen=True)
class Widths:
    """What a block keeps: a number of attention groups and of FFN channels."""

    attention_groups: int
    ffn_channels: int

    def removed_weights(self, shape: ModelShape) -> int:
        """Linear weights that go from a block of this shape."""
        groups = shape.num_key_value_heads - self.attention_groups
        channels = shape.intermediate_size - self.ffn_channels
        return groups * shape.group_weights + channels * shape.channel_weights


def default_ffn_multiple(shape: ModelShape) -> int:
    """The largest power of two up to 128 that is worth at most 1 % of a block's weights."""
    multiple = LARGEST_MULTIPLE
    while multiple > 1 and multiple * shape.channel_weights > MULTIPLE_SHARE * shape.block_weights:
        multiple //= 2
    return multiple


def uniform_widths(shape: ModelShape, ratio: float, ffn_multiple: int) -> Widths:
    """The widths that reach ``ratio`` of a block's linear weights.

    Raises InvalidInput when the ratio cannot be reached, naming the largest one that can.
    """
    widths = _widths(shape, ratio, ffn_multiple)
    if widths is None:
        largest = largest_ratio(shape, ffn_multiple)
        raise InvalidInput(
            f"ratio {ratio:g} of the blocks cannot be reached with uniform widths; the largest "
            f"that can is {math.floor(largest * 1e4) / 1e4:g}"
        )
    return widths


def largest_ratio(shape: ModelShape, ffn_multiple: int) -> float:
    """The largest ratio that :func:`uniform_widths` reaches."""
    groups = shape.num_key_value_heads
    best = 0.0
    for cut in range(groups):
        most = Widths(groups - cut, _fewest_channels(shape, ffn_multiple))
        capacity = most.removed_weights(shape) / shape.block_weights
        # Rounding cuts this many groups only for ratios between these two.
        lowest = (cut - 0.5) / groups
        highest = math.nextafter((cut + 0.5) / groups, 0) if cut < groups - 1 else 1.0
        if capacity >= lowest:
            best = max(best, min(capacity, highest))
    return best


def _fewest_channels(shape: ModelShape, ffn_multiple: int) -> int:
    """The channels that stay when as many multiples as possible go, at least one channel."""
    return (shape.intermediate_size - 1) % ffn_multiple + 1


def _widths(shape: ModelShape, ratio: float, ffn_multiple: int) -> Widths | None:
    groups = shape.num_key_value_heads
    cut = min(math.floor(ratio * groups + 0.5), groups - 1)
    missing = ratio * shape.block_weights - cut * shape.group_weights
    # A billionth of a multiple is rounding of the ratio itself, not a reason to cut one more.
    steps = max(0, math.ceil(missing / (ffn_multiple * shape.channel_weights) - 1e-9))
    channels = shape.intermediate_size - steps * ffn_multiple
    return Widths(groups - cut, channels) if channels >= 1 else None
