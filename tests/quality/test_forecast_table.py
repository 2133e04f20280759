"""The table of forecasts: what was told beside what was taken, and what was not run."""

from __future__ import annotations

from pathlib import Path

from benchmarks import forecasts
from bipline.stages.forecast import STARTING

LINE = {
    "run": "reference-llm quick float32", "model": "reference-llm", "effort": "quick",
    "dtype": "float32", "rates": {"float32": 1e30, "bfloat16": 1e30}, "processor_seconds": 12.0,
    "wall_seconds": 30.0, "peak_anonymous_bytes": 500_000_000,
    "compensate_seconds": 15.0, "compensate_floor_seconds": 4.0,
    "machine": {"processor": "One", "load_before": 1.5},
}  # fmt: skip


def test_told_beside_taken() -> None:
    places = forecasts.places(Path("data"))
    text = forecasts.table([LINE], places)
    row = text.splitlines()[2]
    # With products that take no time a run is its start, and reading at the usual disk's rate.
    assert row.startswith(f"| reference-llm quick float32 | {STARTING:.0f} | 12 | 0.6")
    assert " | 0.50 | " in row
    # Half of the run, so six processor seconds.
    assert row.endswith(" | 6 | 4 | 1.50 |")
    short = forecasts.table([LINE | {"compensate_floor_seconds": None}], places)
    assert short.splitlines()[2].endswith(" | 6 | - | - |"), "too short to have a floor"
    assert "Not run: reference-llm quick bfloat16; " in text
    assert "One thread of One, load before a run 1.5 to 1.5" in text


def test_runs_are_told_apart() -> None:
    every = forecasts.runs()
    assert len({run.name for run in every}) == len(every) == 12
    assert {run.model for run in every} == set(forecasts.places(Path("data")))
