"""A ZenML of the user's own, empty, in a folder of the test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bipline.storage.stage_key import PROJECT_ROOT


def own_zenml(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Its client; the test's process uses it, and works in ``folder``."""
    from zenml.client import Client
    from zenml.config.global_config import GlobalConfiguration
    from zenml.stack import stack
    from zenml.utils import source_utils

    # A worker of the tests has no main file by which ZenML would find where sources lie.
    monkeypatch.setattr(source_utils, "_CUSTOM_SOURCE_ROOT", str(PROJECT_ROOT))
    monkeypatch.setenv("ZENML_CONFIG_PATH", str(folder / "zenml"))
    monkeypatch.setenv("ZENML_ANALYTICS_OPT_IN", "false")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(GlobalConfiguration, "_global_config", None)
    monkeypatch.setattr(Client, "_global_client", None)
    monkeypatch.setattr(stack, "_STACK_CACHE", {})
    return Client()
