"""Resolve: names become exact revisions and digests. Never cached, so changed bytes are seen."""

from __future__ import annotations

from typing import Annotated

from zenml import log_metadata, step

from bipline.base.progress import heading
from bipline.model import resolve as core
from bipline.values.resolution import Resolution
from steps.stage import store

VERSION = "1"


@step(enable_cache=False)
def resolve(
    model: str,
    texts: dict[str, str],
    tasks: dict[str, str],
    calibration_texts: list[str],
    recovery_texts: list[str],
    evaluation_texts: list[str],
    evaluation_tasks: list[str],
) -> tuple[
    Annotated[Resolution, "model"],
    Annotated[Resolution, "calibration_inputs"],
    Annotated[Resolution, "recovery_inputs"],
    Annotated[Resolution, "evaluation_inputs"],
]:
    """Resolve everything, and hand each stage only what it reads."""
    heading("resolve")
    whole = core.resolve(model, texts, tasks, store().root / "downloads")
    log_metadata({"version": VERSION, "output_digest": whole.digest})
    return (
        whole.subset(),
        whole.subset(calibration_texts),
        whole.subset(recovery_texts),
        whole.subset(evaluation_texts, evaluation_tasks),
    )
