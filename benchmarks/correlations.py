"""Rank correlations between scores and true changes, and between criteria."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from benchmarks.precision import rank_correlation
from benchmarks.true_changes import TrueChanges

Scores = Mapping[str, "np.ndarray[Any, np.dtype[np.float64]]"]
KINDS = ("attention_groups", "ffn_channels")


def agreement(scores: Scores, truth: Mapping[str, TrueChanges]) -> dict[str, dict[str, float]]:
    """A criterion's rank correlation with each true change, for each kind of group.

    ``pooled`` ranks the groups of all blocks together, ``mean`` is the mean over blocks. A block
    whose groups all score alike says nothing and counts as 0. ``loss_size`` is how much the loss
    changes, up or down: the effect of a single channel is small, and its sign is that of chance.
    """
    found: dict[str, dict[str, float]] = {}
    for kind in KINDS:
        held = truth[kind]
        mine = np.array([scores[f"{block}.{kind}"][index] for block, index in held.places])
        blocks = np.array([block for block, _ in held.places])
        found[kind] = {}
        sizes = [abs(change) for change in held.loss]
        truths = (("output", held.output), ("loss", held.loss), ("loss_size", sizes))
        for name, values in truths:
            true = np.array(values)
            found[kind][f"{name}_pooled"] = spearman(mine, true)
            inside = [spearman(mine[blocks == b], true[blocks == b]) for b in np.unique(blocks)]
            found[kind][f"{name}_mean"] = float(np.mean(inside))
    return found


def by_block(scores: Scores, truth: TrueChanges) -> list[float]:
    """Rank correlation with the change of the block's output, block by block, attention groups."""
    blocks = np.array([block for block, _ in truth.places])
    mine = np.array([scores[f"{block}.{KINDS[0]}"][index] for block, index in truth.places])
    true = np.array(truth.output)
    return [spearman(mine[blocks == b], true[blocks == b]) for b in np.unique(blocks)]


def between(first: Scores, second: Scores) -> dict[str, float]:
    """Rank correlation of two criteria over the groups of all blocks, for each kind."""
    return {kind: spearman(pooled(first, kind), pooled(second, kind)) for kind in KINDS}


def pooled(scores: Scores, kind: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The scores of one kind in all blocks, one after the other."""
    names = sorted(
        (n for n in scores if n.endswith(f".{kind}")), key=lambda n: int(n.split(".")[0])
    )
    return np.concatenate([scores[name] for name in names])


def spearman(first: Any, second: Any) -> float:
    """Spearman's rank correlation; 0 where one of them is constant."""
    if len(first) < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return 0.0
    return rank_correlation(first, second)


def load_scores(path: Any) -> Scores:
    """Scores that :mod:`benchmarks.criterion_cost` saved, by ``BLOCK.KIND``."""
    return load_file(path)
