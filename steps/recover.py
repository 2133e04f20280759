"""Recover: a short training, kept only where it helps.

The record lies in the manifest of what is stored. A refused recovery is stored too, as its
record alone: the next run with the same inputs need not train again to learn that it failed.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

from zenml import ArtifactConfig, step
from zenml.enums import ArtifactType

from bipline.compression.prune import KIND
from bipline.recovery import lora as core
from bipline.settings.compress import RecoverSection
from bipline.storage.directory import DirectoryWriter
from bipline.storage.store import Handle
from bipline.values.record import RecoveryRecord
from bipline.values.resolution import Resolution
from steps.stage import FROM_JSON, Stage, cached_by, text_digest

VERSION = "1"
STAGE = Stage("recover", VERSION, ("bipline.recovery.lora",))


def fingerprint() -> str:
    """See :meth:`steps.stage.Stage.fingerprint`."""
    return STAGE.fingerprint()


@step(cache_policy=cached_by(f"{__name__}.fingerprint"))
def recover(
    pruned: Handle, recovery_inputs: Resolution, section: Annotated[RecoverSection, FROM_JSON]
) -> tuple[
    Annotated[Handle, ArtifactConfig(name="recovered_model", artifact_type=ArtifactType.MODEL)],
    Annotated[RecoveryRecord, "recovery_record"],
]:
    """The recovered model, or the pruned one where the training did not help."""
    inputs = {"pruned": pruned.digest, "texts": text_digest(recovery_inputs)}
    text, held_out = (
        Path(recovery_inputs.texts[name].location) for name in (section.text, section.held_out)
    )

    def produce(writer: DirectoryWriter) -> None:
        record = core.recover(Path(pruned.location), text, held_out, section.recipe, writer)
        if not record.accepted:
            _discard(writer)
        writer.info = {**writer.info, "recovery": record.model_dump(mode="json")}

    stored = STAGE.stored(STAGE.key(inputs, section), KIND, produce)
    record = RecoveryRecord.model_validate(stored.info["recovery"])
    return (stored if record.accepted else pruned), record


def _discard(writer: DirectoryWriter) -> None:
    """Nothing of the training stays."""
    for path in writer.path.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    writer.kind = "refused-recovery"
    writer.info = {}
