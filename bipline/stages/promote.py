"""Promote: the package becomes a version in the registry, tracked as one MLflow run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from bipline.base.progress import heading
from bipline.delivery.registries import mlflow as core
from bipline.delivery.registries.mlflow_run import RunContent, Tracking
from bipline.delivery.version_summary import base_model, version_summary
from bipline.model.checkpoint import Checkpoint
from bipline.settings.base import flattened
from bipline.settings.compress import CompressSettings, PromoteSettings
from bipline.stages.export import Account
from bipline.stages.stage import Context, Lines
from bipline.storage.store import Handle
from bipline.values.metrics import curves_of, final_metrics, metrics_of
from bipline.values.resolution import Resolution, ResolvedTask, ResolvedText, read_resolution
from bipline.values.summary import Registration


def promote(
    context: Context,
    package: Handle,
    account: Account,
    settings: PromoteSettings,
    tags: Mapping[str, str],
    seconds: Mapping[str, float],
) -> Registration:
    """Register the package under its name and alias, with every number of the run.

    ``seconds`` are of the stages that ran. Never found in a Store: whether the registry has it is
    the registry's to say.
    """
    heading("promote")
    place, records, plan = context.store.open(package), account.records, account.plan
    packaged = str(package.info["packaged"])
    model = read_resolution(place / "resolution.json").model
    documents = {
        name: (place / name).read_text(encoding="utf-8") for name in ("report.html", "README.md")
    }
    content = RunContent(
        params=flattened(account.config),
        metrics={
            **{f"seconds/{stage}": each for stage, each in seconds.items()},
            **metrics_of(records, plan, account.recovery),
        },
        final=final_metrics(records, packaged),
        curves=curves_of(plan),
        artifacts={
            "pruning_plan.json": plan.to_json(),
            "evaluation.json": _json(
                {name: each.to_json_value() for name, each in records.items()}
            ),
            "config.json": _json(account.config),
            **documents,
        },
        tags=dict(tags),
        version_tags={
            "tensor_digest": str(package.info["tensor_digest"]),
            "plan_digest": plan.digest,
            "base_model": base_model(model),
            "base_tensor_digest": str(model.tensor_digest),
            "git_commit": tags.get("git.commit", "unknown"),
        },
        summary=version_summary(records, plan, packaged, model),
    )
    return core.track_and_register(
        package=place,
        package_digest=package.digest,
        name=settings.name,
        alias=settings.alias,
        content=content,
    )


def track_inputs(tracking: Tracking, settings: CompressSettings, resolution: Resolution) -> None:
    """Tell the run what it starts from: the dense model, and each text with what it is read for."""
    files: dict[str, ResolvedText | ResolvedTask] = {**resolution.texts, **resolution.tasks}
    tracking.log_inputs(resolution.model, files, contexts_of(settings))


def contexts_of(settings: CompressSettings) -> dict[str, str]:
    """What each text and task is read for: calibration, training, validation, evaluation."""
    recover, evaluate = settings.recover, settings.evaluate
    readers = {
        "calibration": settings.calibrate.texts,
        "training": (recover.text,) if recover.enabled else (),
        "validation": (recover.held_out,) if recover.enabled else (),
        "evaluation": (*evaluate.texts, *evaluate.tasks),
    }
    return {
        name: ", ".join(context for context, names in readers.items() if name in names) or "unread"
        for name in (*settings.texts, *settings.tasks)
    }


def check(settings: CompressSettings, checkpoint: Checkpoint | None, thorough: bool) -> Lines:
    """The name and the alias. Raises InvalidInput for one that the registry will refuse."""
    name, alias = settings.promote.name, settings.promote.alias
    core.check_names(name, alias)
    return [("promote", f"register {name}, alias {alias}")]


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, sort_keys=True) + "\n"
