"""Pipelines live in the checkout, beside this package; the wheel holds the core alone."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

from bipline.base.errors import InvalidInput
from bipline.storage.stage_key import PROJECT_ROOT


def checkout_root() -> Path:
    """The checkout this package lies in. Raises InvalidInput when it was installed alone."""
    if not (PROJECT_ROOT / "pipelines" / "compress.py").is_file():
        raise InvalidInput(
            "pipelines run from a checkout of bipline, and this is an installed wheel"
        )
    return PROJECT_ROOT


def load_pipeline(name: str) -> ModuleType:
    """A module of the checkout's ``pipelines`` folder."""
    root = str(checkout_root())
    if root not in sys.path:
        sys.path.insert(0, root)
    return importlib.import_module(f"pipelines.{name}")
