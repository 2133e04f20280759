"""The audit pipeline: every version that an alias points at, from its bytes back to its source.

The steps fan out, one for every version, each independent of the others; they meet again in one
page, which is told to MLflow.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zenml import pipeline
from zenml.enums import ExecutionMode
from zenml.models import StepRunResponse

from bipline.audits.registry import pointed_versions
from bipline.settings.audit import AuditSettings
from steps.audits import audit_version, collect_audits, registry_of
from steps.stage import output


@pipeline(name="audit", execution_mode=ExecutionMode.FAIL_FAST)
def audit(settings: AuditSettings) -> None:
    """A step for every version that an alias points at now, and what they come to."""
    audits = [
        audit_version(
            each.model, each.version, list(each.aliases), settings, id=f"version_{number:03d}"
        )
        for number, each in enumerate(
            pointed_versions(registry_of(settings), settings.name), start=1
        )
    ]
    collect_audits(audits, settings)


def configured(settings: AuditSettings, **options: Any) -> Any:
    """The pipeline with the options of a run."""
    return audit.with_options(tags=[settings.name or "every model"], **options)


def summary(steps: Mapping[str, StepRunResponse]) -> dict[str, Any]:
    """What a run found."""
    return {"audit": output(steps, "collect_audits", "registry_audit")}
