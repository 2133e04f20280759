"""Stacks: a run compiled for review, a stack registered from its file, and what is wrong with one.

What asks ZenML lies beside this package, in ``pipelines``.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bipline.base import extras
from bipline.face import named_places
from bipline.face.output import write_json

if TYPE_CHECKING:
    from bipline.settings.compress import CompressSettings


def compiled(
    settings: CompressSettings, stack: str | None, out: Path, json_file: Path | None = None
) -> dict[str, Any]:
    """Write what Kubeflow Pipelines would be given to ``out``, for review; no server is asked.

    ``stack`` is a stack file, or the name of one that comes with bipline. Gives the stack's name
    and those of the steps.
    """
    from bipline.face.api import checked

    extras.check_all(("pipeline", "kubeflow"), "--compile")
    named_places.check_compiled(settings, out, json_file)
    checked(settings)
    made: dict[str, Any] = import_module("pipelines.compiled").compile_compress(
        settings, stack, out
    )
    write_json(json_file, "compile", made)
    return made
