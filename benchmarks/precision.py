"""The section ``precision``: do scores computed in bfloat16 choose what float32 chooses?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from benchmarks.main_job import CRITERION, RATIO
from benchmarks.running import prune
from benchmarks.session import Session
from benchmarks.tables import Section, Table, percent_text
from bipline.values.plan import PruningPlan, read_plan

MODEL = Path("assets/reference-llm")
DTYPES = ("float32", "bfloat16")
SAMPLES, QUICK_SAMPLES = 128, 16
KINDS = {"attention_groups": "attention groups", "ffn_channels": "FFN channels"}


def precision_section(session: Session) -> Section:
    """Score the embedded trained model in both dtypes, and compare plans and scores."""
    samples = QUICK_SAMPLES if session.settings.quick else SAMPLES
    with session.outputs() as folder:
        for dtype in DTYPES:
            prune(
                session, MODEL, folder / dtype, "--criterion", CRITERION, "--ratio", str(RATIO),
                "--dtype", dtype, "--device", "cpu", "--plan-out", folder / f"{dtype}-plan.json",
                "--statistics", folder / f"{dtype}-statistics", samples=samples,
            )  # fmt: skip
        plans = [read_plan(folder / f"{dtype}-plan.json") for dtype in DTYPES]
        scores = [load_file(folder / f"{d}-statistics" / "scores.safetensors") for d in DTYPES]
    blocks = len(plans[0].blocks)
    correlations = {kind: _correlations(scores, kind, blocks) for kind in KINDS}
    same = same_share(plans[1], plans[0])
    values = {
        "model": str(MODEL),
        "samples": samples,
        "ratio": RATIO,
        "same": same,
        "rank_correlation_by_block": correlations,
    }
    return Section(values, (_table(same, correlations, samples),))


def _table(same: dict[str, float], correlations: dict[str, list[float]], samples: int) -> Table:
    columns = ("bfloat16 against float32", "kept by both", "rank correlation, mean", "lowest block")
    rows = [
        (
            name,
            percent_text(same[kind]),
            f"{np.mean(correlations[kind]):.5f}",
            f"{min(correlations[kind]):.5f}",
        )
        for kind, name in KINDS.items()
    ]
    title = f"precision: {MODEL}, {CRITERION}, ratio {RATIO}, {samples} windows"
    return Table(title, columns, (*rows,))


def same_share(plan: PruningPlan, reference: PruningPlan) -> dict[str, float]:
    """Of what the reference keeps, the share that a plan keeps too, by kind of group."""
    shares = {}
    for kind in KINDS:
        pairs = [
            (set(getattr(one, kind)), set(getattr(other, kind)))
            for one, other in zip(plan.blocks, reference.blocks, strict=True)
        ]
        shared = sum(len(one & other) for one, other in pairs)
        shares[kind] = shared / sum(len(other) for _, other in pairs)
    return shares


def _correlations(scores: list[dict[str, np.ndarray]], kind: str, blocks: int) -> list[float]:
    first, second = scores
    names = [f"{index}.{kind}" for index in range(blocks)]
    return [rank_correlation(first[name], second[name]) for name in names]


def rank_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's correlation: Pearson's, of the ranks."""
    return float(np.corrcoef(_ranks(first), _ranks(second))[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1; equal values share the mean of theirs."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[place]
