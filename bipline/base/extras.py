"""Optional parts: a missing library is one line that names the extra to install."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from bipline.base.errors import InvalidInput


def require(module: str, extra: str) -> ModuleType:
    """Import a module of an extra. Raises InvalidInput naming the extra when it is missing."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != module.split(".")[0]:
            raise
        raise InvalidInput(
            f"{module} is not installed: this needs the extra {extra}: "
            f"pip install 'bipline[{extra}]'"
        ) from None
