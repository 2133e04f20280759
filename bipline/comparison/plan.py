"""What a sweep would do, and what of it can be seen to fail before any work."""

from __future__ import annotations

from bipline.comparison.grid import (
    check_some_run,
    combinations,
    compensations_of,
    refusal_of,
)
from bipline.comparison.inputs import short_name
from bipline.model.devices import choose_device
from bipline.settings.compress import CompressSettings, EvaluateSettings
from bipline.settings.sweep import Selection, SweepSettings
from bipline.stages import evaluate, resolve
from bipline.stages.calibrate import DEFAULT_SAMPLES, samples_of
from bipline.stages.resolve import known_checkpoint
from bipline.stages.settled import has_experts
from bipline.values.combination import Combination


def sweep_rows(settings: SweepSettings) -> list[Combination]:
    """The rows of a sweep. Raises InvalidInput for a grid that can be seen to fail."""
    calibration, name = "+".join(settings.calibrate.texts), short_name(settings.model)
    rows = combinations(settings, [name], [calibration])
    if any(row.alias for row in rows) and has_experts(settings.model):
        return combinations(settings, [name], [calibration], [name])
    return rows


def sources_of(settings: SweepSettings) -> CompressSettings:
    """What is resolved: every name of the sweep, and which stage reads which text and task."""
    section = settings.evaluate
    return CompressSettings(
        model=settings.model,
        texts=settings.texts,
        tasks=settings.tasks,
        calibrate=settings.calibrate,
        evaluate=EvaluateSettings(
            texts=section.texts, tasks=section.tasks, protocol=section.protocol
        ),
    )


def check_sweep(settings: SweepSettings) -> list[tuple[str, str]]:
    """One line per stage, those that are refused last. Raises InvalidInput for what must fail."""
    rows, checkpoint = sweep_rows(settings), known_checkpoint(settings.model)
    choose_device(settings.compute.device)
    source = sources_of(settings)
    resolved = resolve.check(source, checkpoint, thorough=False)
    evaluate.check(source, checkpoint, thorough=False)
    section, seeds = settings.calibrate, len(settings.grid.seeds)
    samples = section.samples or DEFAULT_SAMPLES
    if checkpoint:
        samples = samples_of(checkpoint, section, compensations_of(rows))
    criteria = len({row.criterion.label for row in rows})
    texts = ", ".join(settings.evaluate.texts)
    corrected = sum(row.compensates for row in rows)
    picked = _picked(settings.select) if settings.select else "off"
    tasks = f"; tasks: {', '.join(settings.evaluate.tasks)}" if settings.evaluate.tasks else ""
    tasks += "; speed beside the dense model" if settings.evaluate.protocol.speed else ""
    sizes = samples, section.seqlen
    refusals = [(row, refusal_of(checkpoint, row, sizes)) for row in rows] if checkpoint else []
    check_some_run(refusals)
    refused = [("refused", f"{row.label}: {reason}") for row, reason in refusals if reason]
    return [
        *resolved,
        ("calibrate", f"{seeds} times {samples} windows of {section.seqlen} tokens"),
        ("score", f"{criteria} criteria on each, {criteria * seeds} passes"),
        (
            "evaluate",
            f"the dense model, then {len(rows)} rows, {corrected} of them compensated; perplexity "
            f"on {texts}{tasks}",
        ),
        ("collect", "table, report, one MLflow run a row"),
        ("select", picked),
        *refused,
    ]


def _picked(select: Selection) -> str:
    way = "least" if select.minimise else "most"
    most = [f"{name} at most {limit:g}" for name, limit in select.at_most.items()]
    least = [f"{name} at least {limit:g}" for name, limit in select.at_least.items()]
    return ", ".join([f"{way} {select.figure}", *most, *least])
