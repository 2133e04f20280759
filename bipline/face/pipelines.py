"""The pipelines, which lie beside this package: in a checkout, and in the wheel."""

from __future__ import annotations

import importlib
from types import ModuleType

from bipline.base.extras import require


def runner() -> ModuleType:
    """``pipelines.run``. Raises InvalidInput where the extra that pipelines need is missing."""
    for module in ("zenml", "mlflow"):
        require(module, "pipeline")
    return importlib.import_module("pipelines.run")
