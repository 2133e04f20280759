"""Builds as data: the tensors of a decoder and the axis along which each of its dimensions runs.

A file of this folder is a build. Pruning is nothing but indexing along ``query_heads``,
``kv_heads``, ``ffn_channels`` and ``experts``; names inside a block are relative to it. Where an
FFN has experts, ``{expert}`` in a name stands for the number of each, whose tensors go with it.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Axes = tuple[str, ...]
Sublayer = Literal["attention", "ffn"]


class SublayerNorms(BaseModel):
    """The norms of a sublayer, by name; empty for none.

    ``before`` is over what its first matrices read, ``after`` over what its last one gives, before
    that is added to the residual stream.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    before: str = ""
    after: str = ""


class Build(BaseModel):
    """The tensors of a decoder and the axes of each; names inside a block are relative to it.

    ``observed`` are modules whose input (the first, or the one of this number) or output is seen.
    ``stacked`` are tensors of transformers' class that hold those of all experts, one expert after
    the other along their first dimension, and the named parts of each along their second.
    Where the first blocks may lack experts, names that begin with ``experts_alone`` are of blocks
    that have some, those with ``dense_alone`` of those that have none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    # Whether attention and FFN read the same stream, and what both give is added to it at once.
    parallel: bool = False
    block_prefix: str
    block_weights: dict[str, Axes]
    biases: dict[str, dict[str, Axes]]
    head_norms: dict[str, Axes]
    # Norms of queries and keys over all heads together, which go with the heads.
    all_heads_norms: dict[str, Axes] = Field(default_factory=dict)
    norms: dict[Sublayer, SublayerNorms]
    outside_weights: dict[str, Axes]
    embedding: str
    output_weights: dict[str, Axes]
    ignored: tuple[str, ...]
    sublayers: dict[Sublayer, tuple[str, ...]]
    observed: dict[str, tuple[str, str]]
    outputs: dict[Sublayer, tuple[str, ...]]
    stacked: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    experts_alone: tuple[str, ...] = ()
    dense_alone: tuple[str, ...] = ()
    # Whether the matrices of all experts lie as its class takes them, to be multiplied from the
    # right and with gate and up in turn.
    transposed_experts: bool = False

    @property
    def has_experts(self) -> bool:
        """Whether its FFN has experts, whole ones of which go, or as many channels of each."""
        return bool(self.stacked) or self.transposed_experts

    @property
    def gated(self) -> bool:
        """Whether what an FFN makes of its input is multiplied with a gate."""
        return self.has_experts or "mlp.gate_proj.weight" in self.block_weights

    @property
    def held(self) -> list[str]:
        """What transformers' class calls the weights of a block, without biases."""
        inside = {part for parts in self.stacked.values() for part in parts}
        own = [name for name in self.block_weights if not name.startswith(self.dense_alone)]
        return [name for name in own if name not in inside] + list(self.stacked)

    def absent(
        self, num_key_value_heads: int, ffn_units: int, experts: bool = False
    ) -> tuple[str, ...]:
        """What the names of tensors begin with that a block of these widths lacks.

        ``experts``: whether its FFN units are experts.
        """
        attention = () if num_key_value_heads else self.sublayers["attention"]
        other = self.dense_alone if experts else self.experts_alone
        return attention + (other if ffn_units else self.sublayers["ffn"])


@cache
def build_placed(name: str, block_prefix: str, embedding: str) -> Build:
    """The build of this name, with blocks and embedding under other names where some are given."""
    given = {"block_prefix": block_prefix, "embedding": embedding}
    return build_named(name).model_copy(update={key: v for key, v in given.items() if v})


@cache
def build_named(name: str) -> Build:
    """The build of this name."""
    return Build.model_validate_json((Path(__file__).parent / f"{name}.json").read_bytes())
