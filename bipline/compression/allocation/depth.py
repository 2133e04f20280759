"""``depth``: whole blocks go, or whole sublayers, the lowest scores first.

units:  blocks, or attention and FFN sublayers apart, as the criterion scores them
order:  lowest score first, until the weights that went reach the ratio

For criteria whose scores are of units of depth (``block-influence``, ``block-shapley``). Dropped
blocks leave a plain checkpoint with fewer layers, whatever the layout; dropped sublayers need the
per-layer layout. Blocks kept by ``keep_first`` and ``keep_last`` are not dropped; at least one
attention sublayer stays. The ratio is met from above by less than one unit.

Source: established in ShortGPT (arXiv 2403.03853) for blocks, "A deeper look at depth pruning"
(arXiv 2407.16286) for sublayers; scores are taken once on the dense model, not again after each
removal.
"""

from __future__ import annotations

from dataclasses import dataclass

from bipline.base.errors import InvalidInput
from bipline.compression.allocation.problem import Problem
from bipline.compression.allocation.widths import Widths
from bipline.compression.options import BaseOptions

OPTIONS = BaseOptions
WINDOWS = False
NOT_UNIFORM = ""
EXPERTS = True


@dataclass(frozen=True)
class _Unit:
    block: int
    score: float
    attention: bool
    ffn: bool
    weights: int


def widths(problem: Problem, options: BaseOptions) -> list[Widths]:
    """Full widths, and zeros where a unit goes."""
    dropped = _dropped(problem)
    full = [Widths(c.attention_groups[-1], c.ffn_units[-1]) for c in problem.choices]
    for unit in dropped:
        held = full[unit.block]
        full[unit.block] = Widths(
            0 if unit.attention else held.attention_groups, 0 if unit.ffn else held.ffn_units
        )
    return full


def _dropped(problem: Problem) -> list[_Unit]:
    gone: list[_Unit] = []
    removed, attention = 0.0, len(problem.choices)
    for unit in sorted(_units(problem), key=lambda each: each.score):
        if removed >= problem.target:
            return gone
        if unit.attention and attention == 1:
            continue
        attention -= unit.attention
        removed += unit.weights
        gone.append(unit)
    if removed >= problem.target:
        return gone
    share = removed * problem.ratio / problem.target
    raise InvalidInput(
        f"ratio {problem.ratio:g} of the blocks cannot be reached by dropping {_named(problem)}; "
        f"the largest that can is {share:.4f}"
    )


def _units(problem: Problem) -> list[_Unit]:
    units = []
    for block in problem.open_blocks:
        shape, scores = problem.choices[block].shape, problem.scores.blocks[block]
        attention = shape.num_key_value_heads * shape.group_weights
        ffn = shape.ffn_units * shape.ffn_unit_weights
        of_attention, of_ffn = float(scores.attention_groups[0]), float(scores.ffn_units[0])
        if problem.scores.prunes == "blocks":
            units.append(_Unit(block, of_ffn, True, True, attention + ffn))
        else:
            units.append(_Unit(block, of_attention, True, False, attention))
            units.append(_Unit(block, of_ffn, False, True, ffn))
    return units


def _named(problem: Problem) -> str:
    return "blocks" if problem.scores.prunes == "blocks" else "sublayers"
