"""The section ``baseline``: the main job beside hooks on a model that is held in memory."""

from __future__ import annotations

from typing import Any

from benchmarks.main_job import CRITERION, RATIO, SAMPLES
from benchmarks.precision import same_share
from benchmarks.running import forget_model, run_module
from benchmarks.session import Session
from benchmarks.tables import NOTHING, Section, Table, gigabytes_text, percent_text, seconds_text
from bipline.values.plan import PruningPlan, read_plan

MODULE = "benchmarks.hooked_baseline"


def baseline_section(session: Session) -> Section:
    """Run the baseline from a dropped page cache, and compare it with what ``main`` found."""
    model = session.main_model()
    with session.outputs() as folder:
        forget_model(model)
        found, process_seconds = run_module(
            session, MODULE, folder / "baseline.json", model, folder / "pruned",
            "--criterion", CRITERION, "--ratio", str(RATIO), "--samples", str(SAMPLES),
        )  # fmt: skip
    plan = PruningPlan.model_validate(found.pop("plan"))
    main = session.found["main"]
    values = {
        **found,
        "model": str(model),
        "process_seconds": process_seconds,
        "time_ratio": found["total_seconds"] / main["total_seconds"],
        "process_time_ratio": process_seconds / main["process_seconds"],
        "resident_ratio": found["peak_resident_bytes"] / main["peak_resident_bytes"],
        "anonymous_ratio": found["peak_anonymous_bytes"] / main["peak_anonymous_bytes"],
        "same_as_main": same_share(plan, read_plan(session.plan)),
    }
    return Section(values, (_phases(values), _comparison(main, values)), _notes(values))


def _phases(values: dict[str, Any]) -> Table:
    rows = [(name, seconds_text(seconds)) for name, seconds in values["stage_seconds"].items()]
    return Table(f"hooks on the whole model: {values['model']}", ("phase", "s"), (*rows,))


def _comparison(main: dict[str, Any], values: dict[str, Any]) -> Table:
    def row(name: str, field: str, ratio: str, text: Any) -> tuple[str, ...]:
        return (name, text(main[field]), text(values[field]), f"{values[ratio]:.2f}")

    rows = (
        row("peak resident memory", "peak_resident_bytes", "resident_ratio", gigabytes_text),
        row("peak anonymous memory", "peak_anonymous_bytes", "anonymous_ratio", gigabytes_text),
        row("all stages, s", "total_seconds", "time_ratio", seconds_text),
        row("whole process, s", "process_seconds", "process_time_ratio", seconds_text),
        ("size of the model", gigabytes_text(main["model_bytes"]), NOTHING, NOTHING),
    )
    columns = ("", "bipline", "hooked baseline", "baseline / bipline")
    return Table("the main job, both ways", columns, rows)


def _notes(values: dict[str, Any]) -> tuple[str, ...]:
    same = values["same_as_main"]
    return (
        f"of what bipline keeps the baseline keeps {percent_text(same['attention_groups'])} of the "
        f"attention groups and {percent_text(same['ffn_channels'])} of the FFN channels",
        "both start from a dropped page cache and end when the output is on the disk; bipline also "
        "hashes all it reads and writes, and records every finished block",
    )
