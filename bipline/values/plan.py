"""PruningPlan: which groups every block keeps. Small, readable, valid for one model alone."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from bipline.storage.digests import digest_json
from bipline.values.compensation import Compensation, CompensationRecord
from bipline.values.reading import read_value

SCHEMA_VERSION: Literal[5] = 5
# The file that holds the plan, beside what was made by it.
PLAN_NAME = "pruning_plan.json"

# ``uniform``: all blocks that stay are equally wide, and the result is a plain checkpoint.
# ``per-layer``: blocks differ in width, or have lost a sublayer.
Layout = Literal["uniform", "per-layer"]


# What an FFN loses, as users read it.
FfnKind = Literal["FFN channels", "experts", "channels of every expert"]


class BlockPlan(BaseModel):
    """What one block keeps: indices of attention groups (KV heads) and of FFN channels.

    Where an FFN has experts, those that stay are listed and none of ``ffn_channels``. Where none
    stay, the sublayer goes with its norm and biases; where neither has any, the block.
    ``query_heads`` are those that stay of each group that stays, counted within it, as many in
    every group; ``expert_channels`` are those of each expert that stays, as many in every expert,
    and ``shared_channels`` those of what all tokens share beside them; none listed: all of them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    attention_groups: tuple[int, ...]
    ffn_channels: tuple[int, ...]
    experts: tuple[int, ...] = ()
    query_heads: tuple[tuple[int, ...], ...] = ()
    expert_channels: tuple[tuple[int, ...], ...] = ()
    shared_channels: tuple[int, ...] = ()

    @model_validator(mode="after")
    def _ascending(self) -> BlockPlan:
        alone = (self.attention_groups, self.ffn_channels, self.experts, self.shared_channels)
        for kept in (*alone, *self.query_heads, *self.expert_channels):
            if list(kept) != sorted(set(kept)) or min(kept, default=0) < 0:
                raise ValueError("kept indices must be ascending, distinct and not negative")
        if self.ffn_channels and self.experts:
            raise ValueError("an FFN keeps channels or experts, not both")
        if self.shared_channels and not self.expert_channels:
            raise ValueError("shared channels are listed beside channels of experts alone")
        _as_many(self.query_heads, self.attention_groups, "group", "query head")
        _as_many(self.expert_channels, self.experts, "expert", "channel")
        return self

    @model_serializer(mode="wrap")
    def _told(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """What came later is told where there is some, so a plan without is what it always was."""
        told: dict[str, Any] = serialize(self)
        for name in ("experts", "query_heads", "expert_channels", "shared_channels"):
            if not getattr(self, name):
                told.pop(name, None)
        return told

    @classmethod
    def keeping(
        cls,
        groups: Iterable[int],
        units: Iterable[int],
        experts: bool,
        query_heads: Iterable[Iterable[int]] = (),
    ) -> BlockPlan:
        """What keeps these attention groups, and these FFN channels or, of ``experts``, experts.

        Of each group these ``query_heads``; none listed: all of them.
        """
        kind, other = ("experts", "ffn_channels") if experts else ("ffn_channels", "experts")
        kept = {"attention_groups": tuple(groups), kind: tuple(units), other: ()}
        return cls(**kept, query_heads=tuple(map(tuple, query_heads)))

    @property
    def ffn_units(self) -> tuple[int, ...]:
        """The parts of its FFN that stay: channels, or experts."""
        return self.experts or self.ffn_channels

    @property
    def widths(self) -> tuple[int, int]:
        """How many attention groups and FFN channels or experts stay; 0 where the sublayer goes."""
        return len(self.attention_groups), len(self.ffn_units)

    @property
    def told_widths(self) -> tuple[int, int]:
        """The same as users are told: channels of every expert, where these go."""
        groups, units = self.widths
        return groups, self.channels_per_expert or units

    @property
    def queries_per_group(self) -> int | None:
        """How many query heads every group keeps; None where it keeps all of them."""
        return len(self.query_heads[0]) if self.query_heads else None

    @property
    def channels_per_expert(self) -> int | None:
        """How many channels every expert keeps; None where it keeps all of them."""
        return len(self.expert_channels[0]) if self.expert_channels else None

    @property
    def attention_units(self) -> int:
        """How many query heads stay in all where these are listed, else how many groups."""
        return sum(map(len, self.query_heads)) or len(self.attention_groups)

    @property
    def dropped(self) -> bool:
        """Whether the whole block goes."""
        return self.widths == (0, 0)


class Budget(BaseModel):
    """The ratio that was asked for and what the plan reaches, counted both ways.

    ``of`` says what ``asked`` is a share of: the linear weights of the decoder blocks, or all
    parameters of the model.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    asked: float
    of: Literal["blocks", "total"]
    reached_blocks: float
    reached_total: float

    @property
    def reached(self) -> float:
        """What was reached, counted as it was asked."""
        return self.reached_blocks if self.of == "blocks" else self.reached_total


class PruningPlan(BaseModel):
    """The decision: per block, what stays. ``tensor_digest`` names the one model it is for.

    A plan that was ``compensated`` is the realised one: what stays after groups were chosen again,
    and what was done to each block; the corrected tensors lie in a directory of their own. Version
    1 knew neither the per-layer layout nor blocks that go, version 2 no compensation, version 3 no
    experts, version 4 neither query heads nor channels of experts.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1, 2, 3, 4, 5] = SCHEMA_VERSION
    tensor_digest: str
    criterion: str
    criterion_options: dict[str, Any] = Field(default_factory=dict)
    allocation: str
    allocation_options: dict[str, Any] = Field(default_factory=dict)
    layout: Layout = "uniform"
    compensation: Compensation = "none"
    budget: Budget
    ffn_multiple: int = Field(ge=1)
    notes: tuple[str, ...] = ()
    compensated: CompensationRecord | None = None
    blocks: tuple[BlockPlan, ...]

    @model_validator(mode="after")
    def _realised(self) -> PruningPlan:
        if (self.compensation == "none") != (self.compensated is None):
            raise ValueError("compensation and the record of it go together")
        if self.schema_version < 4 and any(block.experts for block in self.blocks):
            raise ValueError("a plan that keeps experts is of version 4")
        if self.schema_version < 5 and any(block.query_heads for block in self.blocks):
            raise ValueError("a plan that lists query heads is of version 5")
        if self.schema_version < 5 and self.within_experts:
            raise ValueError("a plan that lists channels of experts is of version 5")
        return self

    @property
    def digest(self) -> str:
        """The digest of the plan's content; that of an older version is what it always was."""
        return digest_json(self._content())

    @property
    def kept_blocks(self) -> tuple[int, ...]:
        """The blocks of the source that stay, ascending; they are numbered anew in this order."""
        return tuple(index for index, block in enumerate(self.blocks) if not block.dropped)

    @property
    def queries_per_group(self) -> int | None:
        """How many query heads every group keeps; None where it keeps all of them."""
        return max(filter(None, (block.queries_per_group for block in self.blocks)), default=None)

    @property
    def attention_kind(self) -> str:
        """What attention loses, as a user reads it."""
        return "query heads" if self.queries_per_group else "attention groups"

    @property
    def within_experts(self) -> bool:
        """Whether channels of experts go."""
        return any(block.expert_channels for block in self.blocks)

    @property
    def ffn_kind(self) -> FfnKind:
        """What an FFN loses, as a user reads it."""
        if self.within_experts:
            return "channels of every expert"
        return "experts" if any(block.experts for block in self.blocks) else "FFN channels"

    @property
    def counted_blocks(self) -> tuple[int, ...]:
        """The blocks whose FFN is counted in :attr:`ffn_kind`, ascending.

        All of them, but for blocks that have no experts beside others that have some.
        """
        experts = self.ffn_kind != "FFN channels"
        held = enumerate(self.blocks)
        return tuple(index for index, block in held if not (experts and block.ffn_channels))

    def _content(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude=_later_than(self.schema_version))

    def to_json(self) -> str:
        """Text of the plan: one line per block, so that two plans can be compared by diff."""
        value = self._content()
        record, blocks = value.pop("compensated", None), value.pop("blocks")
        text = json.dumps(value, indent=1, allow_nan=False)[:-2]
        if record:
            done = record.pop("blocks")
            head = json.dumps(record, allow_nan=False)[:-1]
            text += f',\n "compensated": {head}, "blocks": {_by_line(done)}}}'
        return f'{text},\n "blocks": {_by_line(blocks)}\n}}\n'


def _as_many(
    lists: tuple[tuple[int, ...], ...], kept: tuple[int, ...], whole: str, part: str
) -> None:
    """Raise ValueError unless every one of what is kept lists as many parts, or none does."""
    counts = {len(parts) for parts in lists}
    if counts and (len(lists) != len(kept) or len(counts) > 1):
        raise ValueError(f"every {whole} that stays keeps as many {part}s")
    if 0 in counts:
        raise ValueError(f"{whole} {kept[0]} stays, and with it at least one {part}")


def _later_than(version: int) -> set[str]:
    """The fields that plans of a version did not have."""
    later = {"criterion_options", "allocation_options"} if version == 1 else set()
    return later | ({"compensated"} if version < 3 else set())


def _by_line(values: list[Any]) -> str:
    lines = ",\n  ".join(json.dumps(value, allow_nan=False) for value in values)
    return f"[\n  {lines}\n ]"


def read_plan(path: Path) -> PruningPlan:
    """Read a plan. Raises InvalidInput when the file is missing or is not a plan."""
    return read_value(path, PruningPlan, "pruning plan")
