"""Criteria: how important is a group? One file each.

A criterion declares what it ``NEEDS`` (:mod:`.needs`) and which ``OPTIONS`` it takes (the paper's
own knobs, with the published defaults). What else its file holds follows from the need:

* ``weights``: ``reads`` (nothing) and ``score``;
* ``moments``: ``reads``, ``observe`` and ``score``; its sums are moments that others share;
* ``tokens``: the same, with work of its own on every token, which ``operations`` counts;
* ``gradients``: ``reads`` and ``score``, on the sums of :mod:`bipline.compression.gradient_sums`;
* ``search``: ``search``, many passes over the whole model, no sums; ``operations`` counts them.

Where it scores the experts of an FFN too, its file says ``EXPERTS = True``; where it scores the
channels of attention, and so query heads too, ``QUERY_HEADS = True``.

``observe(block, tokens, options) -> sums`` is called once per micro-batch of calibration windows;
its sums are added. ``score(sums, block, options) -> BlockScores`` turns the sums and the block's
weights into one number per attention group and per FFN channel: the root mean square, per token,
of the change that removing the group makes (or the criterion's stand-in for it).
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, Protocol, cast

from bipline.base.errors import InvalidInput
from bipline.compression.criteria.interface import (
    Block,
    BlockScores,
    Options,
    Sums,
    Tokens,
)
from bipline.compression.criteria.needs import Needs
from bipline.compression.declared import declaring
from bipline.compression.options import options_from
from bipline.model.shapes import ModelShape
from bipline.settings.method_names import CRITERIA


class Criterion(Protocol):
    """What a criterion's file holds, as far as its need asks for it."""

    NEEDS: Needs
    OPTIONS: type[Options]

    def reads(self, options: Any) -> frozenset[str]:
        """Names of the sums that ``score`` reads. Sums that depend on options bear them."""

    def observe(self, block: Block, tokens: Tokens, options: Any) -> Sums:
        """Sums of one micro-batch of windows; float64, added over micro-batches."""

    def score(self, sums: Sums, block: Block, options: Any) -> BlockScores:
        """Scores of one block from its sums and weights."""

    def search(self, searching: Any, options: Any) -> list[BlockScores]:
        """Scores of all blocks; ``searching`` is a :class:`.search.Search`."""


def module_name(criterion: str) -> str:
    """The module of a criterion, which the stage key follows. Raises InvalidInput if unknown."""
    if criterion not in CRITERIA:
        known = ", ".join(sorted(CRITERIA))
        raise InvalidInput(f"criterion {criterion!r} is unknown; known: {known}")
    return f"bipline.compression.criteria.{CRITERIA[criterion]}"


def modules_of(criterion: str, options: Options) -> tuple[str, ...]:
    """The modules whose code makes the scores: the criterion's, and that of a search's start."""
    start = getattr(options, "initial", None)
    return (module_name(criterion), *([module_name(start)] if start else []))


def load_criterion(name: str) -> Criterion:
    """The criterion of this name. Raises InvalidInput if unknown."""
    module: Any = importlib.import_module(module_name(name))
    return cast("Criterion", module)


def needs_of(criterion: str) -> Needs:
    """What a criterion needs. Raises InvalidInput for an unknown one."""
    return load_criterion(criterion).NEEDS


def options_of(criterion: str, seed: int = 0, given: Mapping[str, Any] | None = None) -> Options:
    """A criterion's options from what the user gave, published defaults for the rest.

    Raises InvalidInput, naming the option, for one that does not exist or has no such value.
    """
    return options_from(load_criterion(criterion).OPTIONS, f"criterion {criterion}", seed, given)


def check_scores_experts(criterion: str, shape: ModelShape) -> None:
    """Raise InvalidInput where an FFN has experts and a criterion scores none."""
    if shape.num_experts and not declaring("EXPERTS", [criterion], load_criterion):
        able = declaring("EXPERTS", CRITERIA, load_criterion)
        raise InvalidInput(
            f"criterion {criterion} scores no experts, of which this model's FFNs are made; name "
            f"one that does: {', '.join(able)}"
        )


def check_scores_query_heads(criterion: str) -> None:
    """Raise InvalidInput where a criterion scores whole attention groups alone."""
    if not declaring("QUERY_HEADS", [criterion], load_criterion):
        able = declaring("QUERY_HEADS", CRITERIA, load_criterion)
        raise InvalidInput(
            f"criterion {criterion} scores attention groups and no query heads by themselves; "
            f"those that do: {', '.join(able)}"
        )


def unmet_needs(criterion: Criterion, options: Options, sums: Mapping[str, object]) -> list[str]:
    """The sums that a criterion needs and that are not there."""
    if not criterion.NEEDS.sums:
        return ["of a search over the whole model"]
    return sorted(criterion.reads(options) - set(sums))
