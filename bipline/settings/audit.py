"""Settings of an audit of a registry: which models, whose word counts, and where it runs."""

from __future__ import annotations

from pydantic import Field

from bipline.settings.stack import StackSettings


class AuditSettings(StackSettings):
    """Every version that an alias points at, of one registered model or of all."""

    name: str | None = Field(
        default=None, min_length=1, description="name of the registered model; null: every model"
    )
    registry: str | None = Field(
        default=None, description="address of MLflow; null: where the stack's runs are told"
    )
    key: str | None = Field(default=None, description="public key (PEM) that is trusted")
    trust: str | None = Field(default=None, description="YAML file that says who is trusted")
