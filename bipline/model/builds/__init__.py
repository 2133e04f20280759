"""Builds as data: the tensors of a decoder and the axis along which each of its dimensions runs.

A file of this folder is a build. Pruning is nothing but indexing along ``query_heads``,
``kv_heads`` and ``ffn_channels``; names inside a block are relative to it.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

Axes = tuple[str, ...]
Sublayer = Literal["attention", "ffn"]


class Build(BaseModel):
    """The tensors of a decoder and the axes of each; names inside a block are relative to it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    block_prefix: str
    block_weights: dict[str, Axes]
    biases: dict[str, dict[str, Axes]]
    head_norms: dict[str, Axes]
    outside_weights: dict[str, Axes]
    embedding: str
    output_weights: dict[str, Axes]
    ignored: tuple[str, ...]
    sublayers: dict[Sublayer, tuple[str, ...]]
    observed: dict[str, tuple[str, str]]
    outputs: dict[Sublayer, tuple[str, ...]]

    def absent(self, num_key_value_heads: int, intermediate_size: int) -> tuple[str, ...]:
        """What the names of tensors begin with that a block of these widths lacks."""
        attention = () if num_key_value_heads else self.sublayers["attention"]
        return attention + (() if intermediate_size else self.sublayers["ffn"])


@cache
def build_named(name: str) -> Build:
    """The build of this name."""
    return Build.model_validate_json((Path(__file__).parent / f"{name}.json").read_bytes())
