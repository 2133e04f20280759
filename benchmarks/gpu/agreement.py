"""What two runs agree on: the groups that they keep, and the order that they score them in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

KINDS = ("attention_groups", "ffn_channels")


def differing_groups(first: Path, second: Path) -> list[dict[str, Any]]:
    """The blocks in which two plans keep different groups: which, by kind, and only in which plan.

    Raises ValueError where the plans are not about equally many blocks.
    """
    pairs = zip(_blocks(first), _blocks(second), strict=True)
    found = [(number, _differences(one, other)) for number, (one, other) in enumerate(pairs)]
    return [{"block": number, **differences} for number, differences in found if differences]


def counts(differing: list[dict[str, Any]]) -> dict[str, int]:
    """How many groups of each kind only one of two plans keeps."""
    return {
        kind: sum(len(groups) for block in differing for groups in block.get(kind, {}).values())
        for kind in KINDS
    }


def kept_groups(plan: Path) -> dict[str, int]:
    """How many groups of each kind a plan keeps."""
    return {kind: sum(len(block[kind]) for block in _blocks(plan)) for kind in KINDS}


def rank_agreement(first: Path, second: Path) -> dict[str, list[float | None]]:
    """Spearman's correlation of two runs' scores in every block, by kind.

    The paths are of saved statistics. None where all groups of a block score alike.
    """
    # Here, because what these bring along is not needed to start other processes.
    from safetensors.numpy import load_file

    scores = [load_file(path / "scores.safetensors") for path in (first, second)]
    blocks = range(1 + max(int(name.split(".")[0]) for name in scores[0]))
    return {
        kind: [_correlation(*(held[f"{block}.{kind}"] for held in scores)) for block in blocks]
        for kind in KINDS
    }


def _blocks(plan: Path) -> list[dict[str, list[int]]]:
    blocks: list[dict[str, list[int]]] = json.loads(plan.read_text(encoding="utf-8"))["blocks"]
    return blocks


def _differences(
    one: dict[str, list[int]], other: dict[str, list[int]]
) -> dict[str, dict[str, list[int]]]:
    found = {}
    for kind in KINDS:
        first, second = set(one[kind]), set(other[kind])
        if first != second:
            only = {"only_first": sorted(first - second), "only_second": sorted(second - first)}
            found[kind] = only
    return found


def _correlation(first: Any, second: Any) -> float | None:
    from benchmarks.precision import rank_correlation

    alike = min(first.max() - first.min(), second.max() - second.min()) == 0
    return None if alike else rank_correlation(first, second)
