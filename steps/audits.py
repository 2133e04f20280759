"""Audits as steps: each version is one of its own; one step collects them and tells the tracker."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from zenml import log_metadata, step

from bipline.audits.audit import Request
from bipline.audits.page import render_registry
from bipline.audits.registry import Pointed
from bipline.audits.registry import audit_version as audit
from bipline.base.addresses import without_secrets
from bipline.base.progress import heading, note
from bipline.delivery.registries.mlflow_service import mlflow_library
from bipline.settings.audit import AuditSettings
from bipline.storage.store import default_downloads
from bipline.values.audit import AuditedVersion, RegistryAudit
from steps.stage import Parameter, tracking_uri
from steps.told_runs import told_runs


def registry_of(settings: AuditSettings) -> str:
    """Where the registered models lie: as the settings say, else where the stack tells its runs."""
    return settings.registry or tracking_uri() or ""


@step(enable_cache=False)
def audit_version(
    model: str, version: str, aliases: list[str], settings: Parameter[AuditSettings]
) -> Annotated[AuditedVersion, "audited"]:
    """One version, from its served bytes back to its source."""
    heading(f"{model} {version}")
    request = Request(
        source="",
        key=Path(settings.key) if settings.key else None,
        trust=Path(settings.trust) if settings.trust else None,
        registry=registry_of(settings),
        downloads=default_downloads(),
        runs=told_runs,
    )
    found = audit(Pointed(model, version, tuple(aliases)), request)
    log_metadata(dict(found.audit.counts))
    return found


@step(enable_cache=False, experiment_tracker=True)
def collect_audits(
    audits: list[AuditedVersion], settings: Parameter[AuditSettings]
) -> Annotated[RegistryAudit, "registry_audit"]:
    """All of them, told to MLflow with their page."""
    found = RegistryAudit(registry=without_secrets(registry_of(settings)), versions=tuple(audits))
    mlflow = mlflow_library()
    mlflow.log_text(found.model_dump_json(indent=1), "audit.json")
    mlflow.log_text(render_registry(found), "audit.html")
    mlflow.log_metrics({"versions": len(audits), "differing": len(found.differences)})
    note(f"{len(audits)} versions audited, {len(found.differences)} with differences")
    return found
