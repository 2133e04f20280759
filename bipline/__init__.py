"""bipline shrinks large language models: LLM-BIP structured pruning as a pipeline.

The public functions are those of :mod:`bipline.face.api`, the errors those of
:mod:`bipline.base.errors`; nothing heavy is imported before one is used. The packages are rooms;
imports run downward only, in this order: ``face``, ``watch``, ``audits``, ``comparison``,
``stages``, ``delivery``, ``recovery``, ``quality``, ``compression``, ``model``, ``settings``,
``values``, ``storage``, ``base``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bipline.base.errors import BiplineError, EnvironmentFailure, InvalidInput, Refused
    from bipline.face.api import (
        audit,
        audit_registry,
        compare,
        compress,
        compress_each,
        diff,
        evaluate,
        export,
        history,
        promote,
        prune,
        recover,
        rollback,
        sign,
        speed,
        sweep,
        verify,
    )

__version__ = "0.1.0"
__all__ = [
    "BiplineError", "EnvironmentFailure", "InvalidInput", "Refused", "__version__", "audit",
    "audit_registry", "compare", "compress", "compress_each", "diff", "evaluate", "export",
    "history", "promote", "prune", "recover", "rollback", "sign", "speed", "sweep", "verify",
]  # fmt: skip
ERRORS = ("BiplineError", "EnvironmentFailure", "InvalidInput", "Refused")


def __getattr__(name: str) -> Any:
    """A public function or error, imported when it is first asked for."""
    from importlib import import_module

    if name not in __all__:
        raise AttributeError(f"module 'bipline' has no attribute {name!r}")
    module = "bipline.base.errors" if name in ERRORS else "bipline.face.api"
    return getattr(import_module(module), name)


def __dir__() -> list[str]:
    return sorted(__all__)
