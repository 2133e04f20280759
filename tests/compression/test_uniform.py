"""Allocation ``uniform`` against brute force."""

from __future__ import annotations

import math

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from bipline.base.errors import InvalidInput
from bipline.compression.allocation.uniform import largest_ratio, uniform_widths
from bipline.compression.allocation.widths import (
    Choices,
    Widths,
    choices_of,
    default_ffn_multiple,
    of_query_heads,
)
from bipline.model.families import ModelShape


def shape(groups: int, queries: int, head_dim: int, hidden: int, ffn: int) -> ModelShape:
    return ModelShape(
        hidden_size=hidden, intermediate_size=ffn, num_attention_heads=groups * queries,
        num_key_value_heads=groups, head_dim=head_dim, num_hidden_layers=2, vocab_size=8,
        tie_word_embeddings=True,
    )  # fmt: skip


SHAPES = st.builds(
    shape,
    groups=st.integers(1, 16),
    queries=st.integers(1, 4),
    head_dim=st.sampled_from([4, 8, 16]),
    hidden=st.sampled_from([16, 32, 64]),
    ffn=st.integers(1, 300),
)


def choices(block: ModelShape, multiple: int, heads: bool) -> Choices:
    """Of groups, or of query ``heads``."""
    free = choices_of(block, multiple)
    return of_query_heads(free) if heads else free


def brute_force(block: ModelShape, ratio: float, multiple: int, heads: bool) -> Widths | None:
    """Read aloud: try every FFN width from the widest, take the first that reaches."""
    groups, queries = block.num_key_value_heads, block.queries_per_group
    kept: tuple[int, int | None] = groups, None
    if heads:
        # So many query heads of every group are nearest to the ratio of attention's weights.
        weights, each = groups * block.group_weights, groups * block.query_head_weights
        off = [(abs(cut * each - ratio * weights), -cut) for cut in range(queries)]
        cut = -min(off)[1]
        kept = groups, queries - cut if cut else None
    else:
        kept = groups - min(math.floor(ratio * groups + 0.5), groups - 1), None
    for channels in range(block.intermediate_size, 0, -multiple):
        widths = Widths(kept[0], channels, kept[1])
        if widths.removed_weights(block) >= ratio * block.block_weights * (1 - 1e-12):
            return widths
    return None


@settings(max_examples=300)
@given(
    block=SHAPES, ratio=st.floats(0.01, 0.99), multiple=st.sampled_from([1, 2, 8, 16]),
    heads=st.booleans(),
)  # fmt: skip
def test_widths_equal_brute_force(
    block: ModelShape, ratio: float, multiple: int, heads: bool
) -> None:
    assume(multiple <= block.intermediate_size)
    expected = brute_force(block, ratio, multiple, heads)
    if expected is None:
        with pytest.raises(InvalidInput, match="largest that can is"):
            uniform_widths(choices(block, multiple, heads), ratio)
    else:
        assert uniform_widths(choices(block, multiple, heads), ratio) == expected


def attempt(asked: Choices, ratio: float) -> Widths | None:
    try:
        return uniform_widths(asked, ratio)
    except InvalidInput:
        return None


@settings(max_examples=200)
@example(block=shape(3, 2, 4, 16, 8), multiple=8, heads=False)
@given(block=SHAPES, multiple=st.sampled_from([1, 2, 8]), heads=st.booleans())
def test_largest_ratio_is_reached_and_nothing_above_is(
    block: ModelShape, multiple: int, heads: bool
) -> None:
    assume(multiple <= block.intermediate_size)
    asked = choices(block, multiple, heads)
    largest = largest_ratio(asked)
    assume(largest > 1e-6)
    # Rounding of the number itself may put it on either side of where it changes its mind.
    reached = [
        found.removed_weights(block)
        for ratio in (largest, largest * (1 - 1e-9))
        if (found := attempt(asked, ratio))
    ]
    assert max(reached) >= largest * (1 - 1e-8) * block.block_weights
    for higher in (largest + 1e-4, (1 + largest) / 2, 0.999):
        if largest + 1e-9 < higher < 1:
            with pytest.raises(InvalidInput):
                uniform_widths(asked, higher)


@pytest.mark.parametrize(
    ("block", "multiple"),
    [
        (shape(4, 2, 32, 256, 768), 8),  # the embedded reference model
        (shape(4, 2, 8, 64, 172), 2),  # stories260K
        (shape(32, 1, 128, 4096, 11008), 128),  # LLaMA-7B
    ],
)
def test_default_multiples_of_known_models(block: ModelShape, multiple: int) -> None:
    assert default_ffn_multiple(block) == multiple
