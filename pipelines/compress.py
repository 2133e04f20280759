"""The compress pipeline: one model in, one registered package out.

This page is the product: ten stages, top to bottom. Each gets its own section of the
configuration and what the stages before it made, so an edit of one section re-runs that stage
and what depends on it.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from zenml import pipeline
from zenml.enums import ExecutionMode

from bipline.settings.compress import CompressConfig, ScoreSection
from pipelines.provenance import provenance
from steps.allocate import allocate
from steps.calibrate import calibrate
from steps.compensate import compensate
from steps.evaluate import evaluate, evaluate_dense
from steps.export import export
from steps.promote import promote
from steps.prune import prune
from steps.recover import recover
from steps.resolve import resolve
from steps.score import reduce_scores, score, score_part


# The first failure ends the run, so that its own exception reaches the caller.
@pipeline(name="compress", execution_mode=ExecutionMode.FAIL_FAST)
def compress(config: CompressConfig) -> None:
    """From a model and its texts to a registered package, one stage after the other."""
    model, calibration_inputs, recovery_inputs, evaluation_inputs = resolve(**names_of(config))
    calibration = calibrate(calibration_inputs, evaluation_inputs, config.calibrate)
    statistics = scored(model, calibration, config.score)
    plan = allocate(model, calibration, statistics, config.allocate)
    corrected: dict[str, Any] = {}
    if config.compensate.form != "none":
        plan, corrected["corrections"] = compensate(model, calibration, plan, config.compensate)
    pruned = subject = prune(model, plan, config.prune, **corrected)
    recovered: dict[str, Any] = {}
    if config.recover.enabled:
        subject, recovered["recovery"] = recover(pruned, recovery_inputs, config.recover)
    measure = partial(evaluate, evaluation_inputs=evaluation_inputs, section=config.evaluate)
    # After all that makes models: a run that fails there has not measured for nothing.
    dense_record = evaluate_dense(evaluation_inputs, config.evaluate, after=subject)
    pruned_record = measure(pruned, id="evaluate_pruned", after=subject)
    if config.recover.enabled:
        recovered["recovered_record"] = measure(subject, id="evaluate_recovered")
    package = export(
        subject, statistics, plan, dense_record, pruned_record, calibration_inputs,
        evaluation_inputs, recovery_inputs, config.export, described(config), **recovered,
    )  # fmt: skip
    promote(
        package, plan, dense_record, pruned_record, config.promote, described(config),
        provenance(), **recovered,
    )  # fmt: skip


def scored(model: Any, calibration: Any, section: ScoreSection) -> Any:
    """One scoring step, or parallel steps over shares of the windows and one that adds them."""
    if section.parts == 1:
        return score(model, calibration, section)
    shares = [
        score_part(model, calibration, section, index, id=f"score_part_{index + 1}")
        for index in range(section.parts)
    ]
    return reduce_scores(model, shares, section, id="score")


def names_of(config: CompressConfig) -> dict[str, Any]:
    """What is resolved: every name of the run, and which stage reads which text."""
    recover = config.recover
    return {
        "model": config.model,
        "texts": config.texts,
        "tasks": config.tasks,
        "calibration_texts": list(config.calibrate.texts),
        "recovery_texts": [recover.text, recover.held_out] if recover.enabled else [],
        "evaluation_texts": list(config.evaluate.texts),
        "evaluation_tasks": list(config.evaluate.tasks),
    }


def described(config: CompressConfig) -> dict[str, Any]:
    """The configuration as a package tells it, without where the run's state lies and what the
    model is called afterwards: neither changes the package.
    """
    return config.model_dump(mode="json", exclude={"state", "promote"})
