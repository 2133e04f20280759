"""The pipelines, which lie beside this package: in a checkout, and in the wheel."""

from __future__ import annotations

import importlib
from types import ModuleType

from bipline.base.extras import check


def runner(command: str = "a pipeline") -> ModuleType:
    """``pipelines.run``. Raises InvalidInput where the extra that pipelines need is missing."""
    check("pipeline", command)
    return importlib.import_module("pipelines.run")
