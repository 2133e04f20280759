"""What a sweep would do, and what of it can be seen to fail before any work."""

from __future__ import annotations

from bipline.comparison.grid import combinations, refusal_of
from bipline.comparison.inputs import short_name
from bipline.model.devices import choose_device
from bipline.settings.line import LineSettings
from bipline.settings.sweep import SweepSettings
from bipline.stages import resolve
from bipline.stages.calibrate import DEFAULT_SAMPLES
from bipline.stages.resolve import known_checkpoint
from bipline.values.combination import Combination


def sweep_rows(settings: SweepSettings) -> list[Combination]:
    """The rows of a sweep. Raises InvalidInput for a grid that can be seen to fail."""
    calibration = "+".join(settings.calibrate.texts)
    return combinations(settings, [short_name(settings.model)], [calibration])


def check_sweep(settings: SweepSettings) -> list[tuple[str, str]]:
    """One line per stage, those that are refused last. Raises InvalidInput for what must fail."""
    rows, checkpoint = sweep_rows(settings), known_checkpoint(settings.model)
    choose_device(settings.compute.device)
    source = LineSettings(model=settings.model, texts=settings.texts)
    resolved = resolve.check(source, checkpoint, thorough=False)
    section, select, seeds = settings.calibrate, settings.select, len(settings.grid.seeds)
    samples = section.samples or DEFAULT_SAMPLES
    criteria = len({row.criterion.label for row in rows})
    texts = ", ".join(settings.evaluate.texts)
    corrected = sum(row.compensates for row in rows)
    limits = [f"{name} at most {most:g}" for name, most in select.at_most.items()] if select else []
    picked = ", ".join([f"least {select.minimise}", *limits]) if select else "off"
    refused = [
        ("refused", f"{row.label}: {reason}")
        for row in rows
        if checkpoint and (reason := refusal_of(checkpoint, row, (samples, section.seqlen)))
    ]
    return [
        *resolved,
        ("calibrate", f"{seeds} times {samples} windows of {section.seqlen} tokens"),
        ("score", f"{criteria} criteria on each, {criteria * seeds} passes"),
        (
            "evaluate",
            f"the dense model, then {len(rows)} rows, {corrected} of them compensated; perplexity "
            f"on {texts}",
        ),
        ("collect", "table, report, one MLflow run a row"),
        ("select", picked),
        *refused,
    ]
