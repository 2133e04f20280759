"""Widths: how many attention groups and FFN units a block keeps, and which counts it may.

The units of an FFN are its channels, or its experts where it has some: then as many stay as a
token passes through, or more. Where a shape says so (``within_experts``), they are channels of
every expert. Channels go in multiples of ``ffn_multiple``; with
``divisible_by`` the kept counts divide among that many devices (tensor parallelism). At least one
group and one channel stay, and with one KV head (MQA), or a class that fixes its heads, attention
stays whole. Where query heads go in place of groups, all KV heads stay, and at least one query head
of each.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from bipline.base.errors import InvalidInput
from bipline.model.families import ModelShape
from bipline.model.shapes import EXPERT_MULTIPLE
from bipline.values.plan import BlockPlan

LARGEST_MULTIPLE = 128
# A multiple coarser than this share of a block would overshoot the ratio noticeably.
MULTIPLE_SHARE = 0.01


@dataclass(frozen=True)
class Widths:
    """What a block keeps: a number of attention groups, and of FFN channels or experts.

    ``queries_per_group`` is how many query heads every group keeps, ``channels_per_expert`` how
    many channels every expert; None for all of them.
    """

    attention_groups: int
    ffn_units: int
    queries_per_group: int | None = None
    channels_per_expert: int | None = None

    @classmethod
    def of(cls, block: BlockPlan) -> Widths:
        """The widths of what a plan keeps of a block."""
        return cls(*block.widths, block.queries_per_group, block.channels_per_expert)

    def removed_weights(self, shape: ModelShape) -> int:
        """Linear weights that go from a block of this shape."""
        groups = shape.num_key_value_heads - self.attention_groups
        units = shape.ffn_units - self.ffn_units
        queries = shape.queries_per_group
        kept = queries if self.queries_per_group is None else self.queries_per_group
        heads = self.attention_groups * (queries - kept)
        of_attention = groups * shape.group_weights + heads * shape.query_head_weights
        return of_attention + units * shape.ffn_unit_weights + self._inside(shape)

    def _inside(self, shape: ModelShape) -> int:
        """Linear weights that go from inside the experts that stay, and from what all share."""
        if self.channels_per_expert is None:
            return 0
        gone = shape.intermediate_size - self.channels_per_expert
        return gone * (self.ffn_units + shape.shared_experts) * shape.channel_weights


@dataclass(frozen=True)
class AttentionChoices:
    """The ``counts`` of its units that attention may keep, ascending, out of ``held``.

    A unit is a group, or one query head of each group; ``unit_weights`` are its linear weights,
    ``weights`` all of attention's.
    """

    counts: tuple[int, ...]
    held: int
    unit_weights: int
    weights: int

    @property
    def units_worth(self) -> float:
        """How many units all of attention's weights come to: KV heads are no part of query heads'.

        Of groups it is their number.
        """
        return self.weights / self.unit_weights

    def removed(self, kept: int) -> int:
        """Linear weights that go where so many units stay."""
        return (self.held - kept) * self.unit_weights

    def nearest(self, wanted: int) -> int:
        """The allowed number of units nearest to ``wanted``, the larger of two."""
        return min(self.counts, key=lambda count: (abs(count - wanted), -count))


@dataclass(frozen=True)
class Choices:
    """The counts a block of this shape may keep, ascending; the last ones are the most.

    ``queries_per_group`` is there where query heads go: as many of every group, and no groups.
    """

    shape: ModelShape
    attention_groups: tuple[int, ...]
    ffn_units: tuple[int, ...]
    queries_per_group: tuple[int, ...] = ()

    @property
    def attention(self) -> AttentionChoices:
        """What attention may keep, of groups or of query heads."""
        shape = self.shape
        groups = shape.num_key_value_heads
        weights = groups * shape.group_weights
        if self.queries_per_group:
            held, unit = shape.queries_per_group, groups * shape.query_head_weights
            return AttentionChoices(self.queries_per_group, held, unit, weights)
        return AttentionChoices(self.attention_groups, groups, shape.group_weights, weights)

    def widths(self, attention: int, ffn_units: int) -> Widths:
        """Widths that keep so many units of attention, and of the FFN."""
        if not self.queries_per_group:
            return Widths(attention, ffn_units)
        queries = attention if attention < self.shape.queries_per_group else None
        return Widths(self.attention_groups[-1], ffn_units, queries)

    def limited(self, attention: tuple[int, ...], ffn_units: tuple[int, ...]) -> Choices:
        """The same with these counts of attention's units, and of the FFN's, and no others."""
        if self.queries_per_group:
            return replace(self, queries_per_group=attention, ffn_units=ffn_units)
        return replace(self, attention_groups=attention, ffn_units=ffn_units)

    def attention_of(self, widths: Widths) -> int:
        """How many units of attention these widths keep."""
        if not self.queries_per_group:
            return widths.attention_groups
        return widths.queries_per_group or self.shape.queries_per_group

    @property
    def narrowest(self) -> Widths:
        """The fewest of everything."""
        return self.widths(self.attention.counts[0], self.ffn_units[0])

    @property
    def widest(self) -> Widths:
        """The most of everything."""
        return self.widths(self.attention.counts[-1], self.ffn_units[-1])

    @property
    def most_removed(self) -> int:
        """Linear weights that can go at most."""
        return self.narrowest.removed_weights(self.shape)

    def in_model(self, widths: Widths) -> Widths:
        """Widths of these units as the model counts them: every expert stays, so wide."""
        if not (self.shape.num_experts and self.shape.within_experts):
            return widths
        kept = None if widths.ffn_units == self.shape.intermediate_size else widths.ffn_units
        return replace(widths, ffn_units=self.shape.num_experts, channels_per_expert=kept)

    def units_for(self, removed: float) -> int | None:
        """The most FFN units that stay when at least ``removed`` weights of the FFN go."""
        # A billionth of a unit is rounding of the ratio itself, not a reason to cut one more.
        keep = self.shape.ffn_units - removed / self.shape.ffn_unit_weights + 1e-9
        place = bisect_right(self.ffn_units, keep)
        return self.ffn_units[place - 1] if place else None

    def units_within(self, removed: float) -> int:
        """The fewest FFN units that stay when at most ``removed`` weights of the FFN go."""
        keep = self.shape.ffn_units - max(0.0, removed) / self.shape.ffn_unit_weights
        place = bisect_left(self.ffn_units, keep - 1e-9)
        return self.ffn_units[min(place, len(self.ffn_units) - 1)]


def whole(shape: ModelShape) -> Choices:
    """The choices of a block that stays as it is."""
    return Choices(shape, (shape.num_key_value_heads,), (shape.ffn_units,))


def in_model(choices: Sequence[Choices], widths: Sequence[Widths]) -> list[Widths]:
    """Widths in the units of these choices as the model counts them, block by block."""
    return [each.in_model(found) for each, found in zip(choices, widths, strict=True)]


def open_choices(choices: Sequence[Choices]) -> tuple[Choices, float]:
    """The choices of the blocks that may lose something, and how many times theirs all weights are.

    These blocks may lose the same; where there are none, the choices are the first block's.
    """
    may = [each for each in choices if each.most_removed] or list(choices)
    total, theirs = (sum(each.shape.block_weights for each in some) for some in (choices, may))
    return may[0], total / theirs


def alike(choices: Sequence[Choices], widths: Widths) -> list[Widths]:
    """These widths for every block that may lose something; the others stay as they are."""
    return [widths if each.most_removed else each.widest for each in choices]


def choices_of(
    shape: ModelShape, ffn_multiple: int, divisible_by: int = 1, heads_fixed: bool = False
) -> Choices:
    """What a block may keep; with ``heads_fixed`` all of its attention.

    Raises InvalidInput when no count of its groups, channels or experts divides by
    ``divisible_by``.
    """
    groups, units = shape.num_key_value_heads, shape.ffn_units
    allowed_groups = [n for n in range(1, groups + 1) if n % divisible_by == 0]
    if groups == 1 or heads_fixed:
        allowed_groups = [groups]
    lowest = shape.least_units
    lowest += (units - lowest) % ffn_multiple
    counts: Iterable[int] = range(lowest, units + 1, ffn_multiple)
    if shape.num_experts and shape.within_experts:
        # Multiples, whatever the dense width is.
        counts = [*range(ffn_multiple, units, ffn_multiple), units]
    allowed = [n for n in counts if n % divisible_by == 0]
    for name, held, counts in (
        ("KV heads", groups, allowed_groups),
        (f"{shape.ffn_kind} in multiples of {ffn_multiple}", units, allowed),
    ):
        if not counts:
            raise InvalidInput(f"divisible_by {divisible_by}: no count of {held} {name} divides")
    return Choices(shape, tuple(allowed_groups), tuple(allowed))


def of_query_heads(choices: Choices, divisible_by: int = 1) -> Choices:
    """The choices where query heads go in place of groups, and all of these stay.

    The query heads that stay divide by ``divisible_by``. Raises InvalidInput where no count does.
    """
    shape = choices.shape
    groups, queries = shape.num_key_value_heads, shape.queries_per_group
    if choices.attention_groups[-1] != groups:
        raise InvalidInput(
            f"divisible_by {divisible_by}: where query heads go all {groups} KV heads stay, and "
            "their number does not divide"
        )
    allowed = [n for n in range(1, queries + 1) if groups * n % divisible_by == 0]
    if not allowed:
        raise InvalidInput(
            f"divisible_by {divisible_by}: no count of {groups * queries} query heads divides"
        )
    return replace(choices, attention_groups=(groups,), queries_per_group=tuple(allowed))


def default_ffn_multiple(shape: ModelShape) -> int:
    """The largest power of two up to 128 that is worth at most 1 % of a block's weights.

    Whole experts go one by one, channels of every expert by 8 at least.
    """
    multiple = 1 if shape.loses_experts else LARGEST_MULTIPLE
    most = MULTIPLE_SHARE * shape.block_weights
    least = EXPERT_MULTIPLE if shape.num_experts else 1
    while multiple > least and multiple * shape.ffn_unit_weights > most:
        multiple //= 2
    return multiple


def checked_multiple(shape: ModelShape, ffn_multiple: int | None) -> int:
    """The FFN multiple to use. Raises InvalidInput for one that no block can have."""
    multiple = default_ffn_multiple(shape) if ffn_multiple is None else ffn_multiple
    if shape.loses_experts and multiple != 1:
        raise InvalidInput(
            f"ffn_multiple {ffn_multiple}: is of FFN channels, and of this model whole experts go; "
            "leave it out, or give divisible_by, by which the number of experts that stay divides, "
            "or of_experts channels"
        )
    if shape.num_experts and shape.within_experts and multiple % EXPERT_MULTIPLE:
        raise InvalidInput(
            f"ffn_multiple {ffn_multiple}: channels of every expert go in multiples of "
            f"{EXPERT_MULTIPLE}, because transformers' grouped products of experts take no others; "
            f"give one"
        )
    if not 1 <= multiple <= shape.intermediate_size:
        raise InvalidInput(
            f"ffn_multiple {multiple}: must lie between 1 and {shape.intermediate_size}"
        )
    return multiple
