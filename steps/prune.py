"""Prune: a model and a plan, perhaps with corrections, become a smaller model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from zenml import ArtifactConfig, step
from zenml.enums import ArtifactType

from bipline.compression import prune as core
from bipline.compression.corrections import open_corrections
from bipline.settings.compress import PruneSection
from bipline.storage.directory import DirectoryWriter
from bipline.storage.store import Handle
from bipline.values.plan import PruningPlan
from bipline.values.resolution import Resolution
from steps.stage import FROM_JSON, Stage, cached_by, dense_checkpoint

VERSION = "2"
STAGE = Stage("prune", VERSION, ("bipline.compression.prune",))


def fingerprint() -> str:
    """See :meth:`steps.stage.Stage.fingerprint`."""
    return STAGE.fingerprint()


@step(cache_policy=cached_by(f"{__name__}.fingerprint"))
def prune(
    model: Resolution,
    plan: PruningPlan,
    section: Annotated[PruneSection, FROM_JSON],
    corrections: Handle | None = None,
) -> Annotated[Handle, ArtifactConfig(name="pruned_model", artifact_type=ArtifactType.MODEL)]:
    """Write the smaller model, with corrections where the plan was compensated."""
    inputs = {"model": model.digest, "plan": plan.digest}
    if corrections:
        inputs["corrections"] = corrections.digest

    def produce(writer: DirectoryWriter) -> None:
        checkpoint = dense_checkpoint(model)
        held = open_corrections(Path(corrections.location))[1] if corrections else None
        core.write_pruned(checkpoint, plan, writer, section.shard_bytes, held)

    return STAGE.stored(STAGE.key(inputs, section), core.KIND, produce)
