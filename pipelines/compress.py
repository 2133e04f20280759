"""The compress pipeline: one model in, one registered package out.

This page is the product: the stages, top to bottom. Each gets its own section of the settings
and what the stages before it made, so an edit of one section re-runs that stage and what depends
on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from zenml import Model, pipeline
from zenml.enums import ExecutionMode
from zenml.models import StepRunResponse

from bipline.compression.auto import applies
from bipline.settings.compress import CompressSettings
from bipline.settings.stack import WHERE
from bipline.stages.compensate import has_corrections
from bipline.stages.export import records_of
from bipline.stages.line import runs_windows
from bipline.stages.promote import gate_of
from pipelines.provenance import provenance
from steps import line, parts
from steps.notices import on_failure
from steps.stage import output, store


# The first failure ends the run, so that its own exception reaches the caller.
@pipeline(name="compress", execution_mode=ExecutionMode.FAIL_FAST)
def compress(settings: CompressSettings) -> None:
    """From a model and its texts to a registered package, one stage after the other."""
    model, calibration_inputs, recovery_inputs, evaluation_inputs = line.resolve(settings)
    compute, seed = settings.compute, settings.seed
    windows: dict[str, Any] = {}
    if runs_windows(settings):
        windows["calibration"] = line.calibrate(
            calibration_inputs, evaluation_inputs, settings.calibrate, (settings.compensate,), seed
        )
    scored: dict[str, Any] = {}
    corrected: dict[str, Any] = {}
    if not applies(settings):
        scored["statistics"] = statistics = score_all(model, settings, **windows)
        plan = line.allocate(model, statistics, settings.allocate, compute, seed, **windows)
    elif has_corrections(settings.compensate):
        plan, corrected["corrections"] = line.given_corrections(
            model, settings.allocate, settings.compensate
        )
    else:
        plan = line.given_plan(model, settings.allocate)
    held: dict[str, Any] = {}
    if set(settings.export.formats) != {"hf"}:  # which holds whatever a plan makes
        held["after"] = line.check_formats(
            model, plan, settings.export, settings.compensate, **corrected
        )
    if settings.compensate.chosen != "none":
        plan, corrected["corrections"] = line.compensate(
            model, plan=plan, settings=settings.compensate, compute=compute, seed=seed,
            **windows, **held,
        )  # fmt: skip
    pruned = subject = line.prune(model, plan, settings.prune, **corrected, **windows, **held)
    # Where the run's state lies, and what the model is called afterwards, change no package.
    config = settings.model_dump(mode="json", exclude={*WHERE, "promote"})
    account: dict[str, Any] = {"plan": plan, "config": config}
    if settings.recover.enabled:
        subject, account["recovery"] = line.recover(
            pruned, recovery_inputs, evaluation_inputs, settings.recover, compute
        )
    account |= measure_all(settings, evaluation_inputs, pruned, subject)
    inputs = calibration_inputs, evaluation_inputs, recovery_inputs
    package = line.export(subject, *inputs, settings.export, **account, **scored)
    promotion = settings.promote, gate_of(settings.promote), settings.export.sign
    line.promote(package, *promotion, provenance(), **account)


def measure_all(
    settings: CompressSettings, given: Any, pruned: Any, subject: Any
) -> dict[str, Any]:
    """The records of all models, by the name that the export knows each by, and their speeds."""
    section, found = settings.evaluate, dict[str, Any]()
    measured: dict[str, Any] = {
        "evaluation_inputs": given, "protocol": section.protocol, "compute": settings.compute,
    }  # fmt: skip
    # After all that makes models: a run that fails there has not measured for nothing.
    found["dense_record"] = measure("dense", None, section.parts, **measured, after=subject)
    found["pruned_record"] = measure("pruned", pruned, section.parts, **measured, after=subject)
    if settings.recover.enabled:
        found["recovered_record"] = measure("recovered", subject, section.parts, **measured)
    if section.protocol.speed:
        found["speeds"] = line.speed(pruned=pruned, subject=subject, **measured)
    return found


def measure(name: str, subject: Any, count: int, **inputs: Any) -> Any:
    """The step that measures a model, whose record is called after it; the dense one for None.

    With a ``count`` of parts, that many parallel steps and one where they meet.
    """
    own = {} if subject is None else {"subject": subject}
    if count > 1:
        found = [
            parts.evaluate_part(
                name=name, index=index, parts=count, id=f"evaluate_{name}_part_{index + 1}",
                **own, **inputs,
            )
            for index in range(count)
        ]  # fmt: skip
        inputs.pop("after", None)
        return called(parts.join_parts, name)(parts=found, name=name, **own, **inputs)
    if subject is None:
        return line.evaluate_dense(**inputs)
    return called(line.evaluate, name)(name=name, **own, **inputs)


def called(step: Any, name: str) -> Any:
    """A measuring step under the name of its model, as its record is."""
    return partial(step.with_options(substitutions={"model": name}), id=f"evaluate_{name}")


def configured(settings: CompressSettings, **options: Any) -> Any:
    """The pipeline under a model of the registered name: each run is a version of it in ZenML."""
    section = settings.promote
    model = Model(
        name=section.name,
        description=f"{settings.model}, pruned; registered in MLflow under the same name",
        tags=["bipline"],
    )
    tags = [settings.score.criterion or "plan", settings.allocate.budget]
    # ZenML asks where the sources of a hook lie, which an import does not know.
    return compress.with_options(model=model, tags=tags, on_failure=on_failure, **options)


def score_all(model: Any, settings: CompressSettings, **windows: Any) -> Any:
    """One scoring step, or parallel steps over shares of the windows and one that adds them."""
    section = settings.score
    shared = {"settings": section, "compute": settings.compute, "seed": settings.seed, **windows}
    if section.parts == 1 or not windows:
        return line.score(model, **shared)
    found = [
        parts.score_part(model, index=index, id=f"score_part_{index + 1}", **shared)
        for index in range(section.parts)
    ]
    return parts.reduce_scores(model, parts=found, id="score", **shared)


def summary(steps: Mapping[str, StepRunResponse]) -> dict[str, Any]:
    """What a run made."""
    plans = (
        output(steps, each, "plan") for each in ("allocate", "given_plan", "given_corrections")
    )
    recovery, package = (
        output(steps, "recover", "recovery_record"),
        output(steps, "export", "package"),
    )
    return {
        "plan": next(plan for plan in plans if plan),
        "records": records_of(
            output(steps, "evaluate_dense", "dense_record"),
            output(steps, "evaluate_pruned", "pruned_record"),
            output(steps, "evaluate_recovered", "recovered_record"),
            recovery,
            output(steps, "speed", "speeds"),
        ),
        "recovery": recovery,
        "package": package,
        "registration": output(steps, "promote", "registration"),
        "report": str(store().open(package) / "report.html"),
    }
