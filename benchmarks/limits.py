"""The section ``larger-than-memory``: a model several times larger than what may be held."""

from __future__ import annotations

from pathlib import Path

from benchmarks.main_job import ON_CPU, RATIO, SAMPLES
from benchmarks.running import prune
from benchmarks.session import Session, blocks_for, model_bytes, scaled
from benchmarks.tables import Section, Table, gigabytes_text, seconds_text

LIMIT, QUICK_LIMIT = 2_500_000_000, 900_000_000
TIMES_LARGER = 3
# Wider blocks than the small shape's, so that fifty of them are enough.
QUICK_HIDDEN_SIZE = 1536
QUICK_SAMPLES = 1


def larger_than_memory_section(session: Session) -> Section:
    """The main job under a limit on private memory, which the kernel holds the process to."""
    quick = session.settings.quick
    limit, samples = (QUICK_LIMIT, QUICK_SAMPLES) if quick else (LIMIT, SAMPLES)
    model = _model(session, limit)
    options = ("--ratio", str(RATIO), *ON_CPU)
    with session.outputs() as folder:
        pruned = prune(
            session, model, folder / "pruned", *options, samples=samples, data_limit=limit
        )
    values = {
        "command": pruned.command,
        "succeeded": True,  # a failure ends the benchmarks
        "data_limit_bytes": limit,
        "model_bytes": model_bytes(model),
        "times_larger": model_bytes(model) / limit,
        "peak_anonymous_bytes": pruned.result["peak_anonymous_bytes"],
        "peak_resident_bytes": pruned.result["peak_rss_bytes"],
        "total_seconds": pruned.result["seconds"]["total"],
    }
    rows = (
        ("size of the model", gigabytes_text(values["model_bytes"])),
        ("limit on private memory (RLIMIT_DATA)", gigabytes_text(limit)),
        ("model / limit", f"{values['times_larger']:.1f}"),
        ("peak anonymous memory", gigabytes_text(values["peak_anonymous_bytes"])),
        ("all stages, s", seconds_text(values["total_seconds"])),
        ("outcome", "succeeded"),
    )
    table = Table(f"larger than memory: {model}", ("", ""), rows)
    return Section(values, (table,), (f"command: `{pruned.command}`",))


def _model(session: Session, limit: int) -> Path:
    """The main model where it is large enough, else one of its shape with more blocks."""
    settings = session.settings
    hidden_size = QUICK_HIDDEN_SIZE if settings.quick else None
    sizes = scaled(settings.shape, settings.blocks, hidden_size)
    return session.checkpoint(settings.shape, blocks_for(sizes, TIMES_LARGER * limit), hidden_size)
