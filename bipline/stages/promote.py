"""Promote: the package becomes a version in the registry, tracked as one MLflow run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from bipline.base.progress import heading
from bipline.delivery.registries import mlflow as core
from bipline.model.checkpoint import Checkpoint
from bipline.settings.base import flattened
from bipline.settings.compress import CompressSettings, PromoteSettings
from bipline.stages.export import Account
from bipline.stages.stage import Context, Lines
from bipline.storage.store import Handle
from bipline.values.figures import metrics_of
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

    Never found in a Store: whether the registry has it is the registry's to say.
    """
    heading("promote")
    place, records = context.store.open(package), account.records
    return core.track_and_register(
        package=place,
        package_digest=package.digest,
        name=settings.name,
        alias=settings.alias,
        params=flattened(account.config),
        metrics={**seconds, **metrics_of(records, account.plan, account.recovery)},
        artifacts={
            "pruning_plan.json": account.plan.to_json(),
            "evaluation.json": _json(
                {name: each.to_json_value() for name, each in records.items()}
            ),
            "config.json": _json(account.config),
            "report.html": (place / "report.html").read_text(encoding="utf-8"),
        },
        tags=dict(tags),
    )


def check(settings: CompressSettings, checkpoint: Checkpoint | None, thorough: bool) -> Lines:
    """The name and the alias. Raises InvalidInput for one that the registry will refuse."""
    name, alias = settings.promote.name, settings.promote.alias
    core.check_names(name, alias)
    return [("promote", f"register {name}, alias {alias}")]


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, sort_keys=True) + "\n"
