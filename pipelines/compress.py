"""The compress pipeline: one model in, one registered package out.

This page is the product: the stages, top to bottom. Each gets its own section of the settings
and what the stages before it made, so an edit of one section re-runs that stage and what depends
on it.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from zenml import pipeline
from zenml.enums import ExecutionMode

from bipline.compression.auto import applies
from bipline.settings.compress import CompressSettings
from bipline.stages.compensate import has_corrections
from bipline.stages.line import runs_windows
from pipelines.provenance import provenance
from steps.allocate import allocate, given_plan
from steps.calibrate import calibrate
from steps.compensate import compensate, given_corrections
from steps.evaluate import evaluate, evaluate_dense
from steps.export import export, promote
from steps.prune import prune
from steps.recover import recover
from steps.resolve import resolve
from steps.score import reduce_scores, score, score_part


# The first failure ends the run, so that its own exception reaches the caller.
@pipeline(name="compress", execution_mode=ExecutionMode.FAIL_FAST)
def compress(settings: CompressSettings) -> None:
    """From a model and its texts to a registered package, one stage after the other."""
    model, calibration_inputs, recovery_inputs, evaluation_inputs = resolve(settings)
    computing = {"compute": settings.compute, "seed": settings.seed}
    windows: dict[str, Any] = {}
    if runs_windows(settings):
        windows["calibration"] = calibrate(
            calibration_inputs, evaluation_inputs, settings.calibrate, settings.compensate,
            settings.seed,
        )  # fmt: skip
    scored: dict[str, Any] = {}
    corrected: dict[str, Any] = {}
    if not applies(settings):
        scored["statistics"] = statistics = score_all(model, settings, **windows)
        plan = allocate(model, statistics, settings.allocate, **computing, **windows)
    elif has_corrections(settings.compensate):
        plan, corrected["corrections"] = given_corrections(model, line_of(settings))
    else:
        plan = given_plan(model, settings.allocate)
    if settings.compensate.chosen != "none":
        plan, corrected["corrections"] = compensate(
            model, plan=plan, settings=settings.compensate, **computing, **windows
        )
    pruned = subject = prune(model, plan, settings.prune, **corrected, **windows)
    recovered: dict[str, Any] = {}
    if settings.recover.enabled:
        subject, recovered["recovery"] = recover(
            pruned, recovery_inputs, evaluation_inputs, settings.recover
        )
    protocol, compute = settings.evaluate.protocol, settings.compute
    measure = partial(
        evaluate, evaluation_inputs=evaluation_inputs, protocol=protocol, compute=compute
    )
    # After all that makes models: a run that fails there has not measured for nothing.
    dense_record = evaluate_dense(evaluation_inputs, protocol, compute, after=subject)
    pruned_record = measure(pruned, name="pruned", id="evaluate_pruned", after=subject)
    if settings.recover.enabled:
        recovered["recovered_record"] = measure(subject, name="recovered", id="evaluate_recovered")
    package = export(
        subject, plan, dense_record, pruned_record, calibration_inputs, evaluation_inputs,
        recovery_inputs, settings.export, described(settings), **scored, **recovered,
    )  # fmt: skip
    promote(
        package, plan, dense_record, pruned_record, settings.promote, described(settings),
        provenance(), **recovered,
    )  # fmt: skip


def score_all(model: Any, settings: CompressSettings, **windows: Any) -> Any:
    """One scoring step, or parallel steps over shares of the windows and one that adds them."""
    section = settings.score
    computing = {"compute": settings.compute, "seed": settings.seed}
    if section.parts == 1 or not windows:
        return score(model, section, **computing, **windows)
    shares = [
        score_part(
            model, settings=section, index=index, id=f"score_part_{index + 1}", **computing,
            **windows,
        )
        for index in range(section.parts)
    ]  # fmt: skip
    return reduce_scores(model, parts=shares, settings=section, id="score", **computing, **windows)


def line_of(settings: CompressSettings) -> Any:
    """The settings of the line alone."""
    from bipline.settings.line import LineSettings

    return LineSettings.model_validate(
        settings.model_dump(include=set(LineSettings.model_fields), exclude_unset=True)
    )


def described(settings: CompressSettings) -> dict[str, Any]:
    """The settings as a package tells them, without where the run's state lies and what the model
    is called afterwards: neither changes the package.
    """
    return settings.model_dump(mode="json", exclude={"state", "promote"})
