"""The section ``scoring-overhead``: what the sums and scores cost beside the forward pass."""

from __future__ import annotations

from typing import Any

from benchmarks.running import run_module
from benchmarks.scoring_overhead import CRITERIA, PLAIN
from benchmarks.session import Session
from benchmarks.tables import NOTHING, Section, Table, percent_text

SAMPLES, QUICK_SAMPLES = 64, 16


def overhead_section(session: Session) -> Section:
    """Seconds per block of a plain pass and of scoring, on a checkpoint with few blocks."""
    settings = session.settings
    samples = QUICK_SAMPLES if settings.quick else SAMPLES
    model = session.checkpoint(settings.shape, settings.overhead_blocks)
    module = "benchmarks.scoring_overhead"
    with session.outputs() as folder:
        json_file = folder / "overhead.json"
        found, _ = run_module(session, module, json_file, model, "--samples", str(samples))
    plain = min(found["seconds"][PLAIN]) / found["blocks"]
    values = {
        **found,
        "model": str(model),
        "plain_seconds_per_block": plain,
        "criteria": {name: _criterion_values(found, name, plain) for name in CRITERIA},
    }
    title = f"scoring overhead: {model}, {found['blocks']} blocks, {found['tokens']} tokens"
    return Section(values, (_table(title, values),), _notes())


def _criterion_values(found: dict[str, Any], name: str, plain: float) -> dict[str, float]:
    seconds = min(found["seconds"][name]) / found["blocks"]
    parts = found["parts"][name]
    known = parts["observe_seconds_per_block"] + parts["score_seconds_per_block"]
    return {
        "seconds_per_block": seconds,
        "overhead": seconds / plain - 1,
        "overhead_of_parts": known / plain,
        **parts,
    }


def _table(title: str, values: dict[str, Any]) -> Table:
    columns = ("", "s/block", "overhead", "observe, s/block", "observe, µs/token",
               "score, s/block", "observe + score")  # fmt: skip
    plain = values["plain_seconds_per_block"]
    rows = [(PLAIN, f"{plain:.4f}", *[NOTHING] * 5)]
    for name, found in values["criteria"].items():
        rows.append(
            (
                f"scoring: {name}",
                f"{found['seconds_per_block']:.4f}",
                percent_text(found["overhead"]),
                f"{found['observe_seconds_per_block']:.4f}",
                f"{found['observe_seconds_per_token'] * 1e6:.2f}",
                f"{found['score_seconds_per_block']:.4f}",
                percent_text(found["overhead_of_parts"]),
            )
        )
    return Table(title, columns, (*rows,))


def _notes() -> tuple[str, ...]:
    return (
        "overhead is measured between whole passes, best of three each, alternating; the columns "
        "after it are `observe` (grows with the tokens) and `score` (once a block) measured alone",
        "hidden states stay in memory and the model in the page cache; the records that let "
        "`bipline prune` go on after a kill are not written here",
    )
