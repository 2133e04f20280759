"""Resolve: names become exact revisions and digests. Never cached, so changed bytes are seen."""

from __future__ import annotations

from typing import Annotated

from zenml import log_metadata, step
from zenml.client import Client

from bipline.base.progress import heading
from bipline.settings.compress import CompressSettings
from bipline.stages import resolve as stage
from bipline.storage.store import default_downloads
from bipline.values.resolution import Resolution
from steps.stage import FROM_JSON


@step(enable_cache=False)
def resolve(
    settings: Annotated[CompressSettings, FROM_JSON],
) -> tuple[
    Annotated[Resolution, "model"],
    Annotated[Resolution, "calibration_inputs"],
    Annotated[Resolution, "recovery_inputs"],
    Annotated[Resolution, "evaluation_inputs"],
]:
    """Resolve everything, and hand each stage only what it reads."""
    heading("resolve")
    tracker = Client().active_stack.experiment_tracker
    registry = tracker.config.tracking_uri if tracker else None
    whole = stage.resolve(settings, default_downloads(), registry)
    log_metadata({"output_digest": whole.digest})
    recover, evaluate = settings.recover, settings.evaluate
    return (
        whole.subset(),
        whole.subset(settings.calibrate.texts),
        whole.subset([recover.text, recover.held_out] if recover.enabled else []),
        whole.subset(evaluate.texts, evaluate.tasks),
    )
