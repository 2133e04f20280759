"""``bipline sweep --dry-run``: what a sweep would do, without doing it."""

from __future__ import annotations

from pathlib import Path

from bipline.comparison.grid import (
    Common,
    Grid,
    check_grid,
    choices,
    combinations,
    refusal_of,
)
from bipline.comparison.methods import methods
from bipline.model.devices import choose_device
from bipline.model.opening import open_checkpoint
from bipline.settings.sweep import SweepConfig
from bipline.storage.documents import read_documents
from bipline.values.combination import Combination


def combinations_of(config: SweepConfig) -> list[Combination]:
    """The rows of a sweep. Raises InvalidInput for a grid that can be seen to fail."""
    grid = Grid(
        models=(model_name(config.model),),
        calibrations=("+".join(config.calibrate.texts),),
        criteria=choices(config.grid.scored),
        allocations=choices(config.grid.allocations),
        layouts=config.grid.layouts,
        compensations=choices(config.grid.compensations),
        ratios=config.grid.ratios,
        seeds=config.grid.seeds,
        methods=methods(config.grid.methods),
        common=Common(**config.allocate.model_dump()),
    )
    check_grid(grid)
    return combinations(grid)


def model_name(source: str) -> str:
    """What a sweep calls its model: the last part of where it lies."""
    return source.removeprefix("hf:") if source.startswith("hf:") else Path(source).name or source


def plan_of_sweep(config: SweepConfig) -> str:
    """One line per stage. What a hub model refuses is not known before it is downloaded.

    Raises InvalidInput for what can be seen to fail already now.
    """
    rows = combinations_of(config)
    for device in (config.compute.device, config.evaluate.device):
        choose_device(device)
    for source in config.texts.values():
        if not source.startswith("hf:"):
            read_documents(Path(source))
    refused = _refused(config, rows)
    seeds = len(config.grid.seeds)
    criteria = len({row.criterion.label for row in rows})
    corrected = sum(row.compensates for row in rows)
    calibrate, select = config.calibrate, config.select
    limits = ", ".join(f"{name} at most {most:g}" for name, most in select.at_most.items()) if (
        select
    ) else ""  # fmt: skip
    lines = [
        ("resolve", config.model),
        ("calibrate", f"{seeds} times {calibrate.samples} windows of {calibrate.seqlen} tokens"),
        ("score", f"{criteria} criteria on each, {criteria * seeds} passes"),
        ("evaluate", f"the dense model, then {len(rows)} rows, {corrected} of them compensated; "
                     f"perplexity on {', '.join(config.evaluate.texts)}"),
        ("collect", "table, report, one MLflow run a row"),
        ("select", f"least {select.minimise}{', ' if limits else ''}{limits}" if select else "off"),
        *(("refused", text) for text in refused),
    ]  # fmt: skip
    return "\n".join(f"{stage:<11}{text}" for stage, text in lines)


def _refused(config: SweepConfig, rows: list[Combination]) -> list[str]:
    if "://" in config.model or config.model.startswith("hf:"):
        return []
    checkpoint = open_checkpoint(config.model)
    windows = (config.calibrate.samples, config.calibrate.seqlen)
    told = ((row, refusal_of(checkpoint, row, windows)) for row in rows)
    return [f"{row.label}: {reason}" for row, reason in told if reason]
