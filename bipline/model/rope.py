"""How positions turn the heads, as a config.json says it: under either of transformers' names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def _parameters(config: Mapping[str, Any]) -> Mapping[str, Any]:
    return config.get("rope_scaling") or config.get("rope_parameters") or {}


def rope_type(config: Mapping[str, Any]) -> str:
    """transformers' name of how positions are scaled."""
    rope = _parameters(config)
    return str(rope.get("rope_type", rope.get("type", "default")))


def partial_rotary_factor(config: Mapping[str, Any]) -> float:
    """The share of every head that turns by its position; the rest is as it is."""
    return float(
        _parameters(config).get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))
    )
