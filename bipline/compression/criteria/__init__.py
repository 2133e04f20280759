"""Criteria: how important is a group? One file each, as ``observe`` and ``score``.

``observe(block, activations) -> sums`` is called once per chunk of calibration windows; its sums
are added. ``score(sums, block, options) -> BlockScores`` turns the sums and the block's weights
into one number per attention group and per FFN channel: the root mean square, per token, of the
change that removing the group makes (or the criterion's stand-in for it).
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, Protocol, cast

from bipline.artifacts.errors import InvalidInput
from bipline.compression.criteria.interface import Block, BlockScores, Options, Sums
from bipline.model.block_loop import Activations

CRITERIA = {
    "llm-bip": "llm_bip",
    "llm-bip-exact": "llm_bip_exact",
    "llm-bip-glu": "llm_bip_glu",
    "magnitude": "magnitude",
    "random": "random",
    "wanda-sp": "wanda_sp",
}


class Criterion(Protocol):
    """What a criterion's file holds. ``NEEDS`` names the sums that ``score`` reads."""

    NEEDS: frozenset[str]

    def observe(self, block: Block, activations: Activations) -> Sums:
        """Sums of one chunk of windows; float64, added over chunks."""

    def score(self, sums: Sums, block: Block, options: Options) -> BlockScores:
        """Scores of one block from its sums and weights."""


def module_name(criterion: str) -> str:
    """The module of a criterion, which the stage key follows. Raises InvalidInput if unknown."""
    if criterion not in CRITERIA:
        known = ", ".join(sorted(CRITERIA))
        raise InvalidInput(f"criterion {criterion!r} is unknown; known: {known}")
    return f"bipline.compression.criteria.{CRITERIA[criterion]}"


def load_criterion(name: str) -> Criterion:
    """The criterion of this name. Raises InvalidInput if unknown."""
    module: Any = importlib.import_module(module_name(name))
    return cast("Criterion", module)


def unmet_needs(criterion: Criterion, sums: Mapping[str, object]) -> list[str]:
    """The sums that a criterion needs and that are not there."""
    return sorted(criterion.NEEDS - set(sums))
