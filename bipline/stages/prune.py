"""Prune: a model and a plan, perhaps with corrections, become a smaller model."""

from __future__ import annotations

from pathlib import Path

from bipline.compression import prune as core
from bipline.compression.corrections import open_corrections
from bipline.model.checkpoint import Checkpoint
from bipline.settings.line import LineSettings, PruneSettings
from bipline.stages.stage import Context, Lines, Stage
from bipline.storage.directory import DirectoryWriter
from bipline.storage.store import Handle
from bipline.values.plan import PruningPlan
from bipline.values.resolution import ResolvedModel

STAGE = Stage("prune", core.KIND, ("bipline.compression.prune",))


def prune(
    context: Context,
    model: ResolvedModel,
    plan: PruningPlan,
    corrections: Handle | None,
    settings: PruneSettings,
) -> Handle:
    """Write the smaller model, with corrections where the plan was compensated."""
    inputs = {"model": model.identity, "plan": plan.digest, "tokenizer": model.tokenizer_digest}
    if corrections:
        inputs["corrections"] = corrections.digest

    def produce(writer: DirectoryWriter, work: Path) -> None:
        corrected = open_corrections(context.store.open(corrections))[1] if corrections else None
        core.write_pruned(context.opened(model), plan, writer, settings.shard_size, corrected)

    return STAGE.run(context, STAGE.key(inputs, settings.model_dump(mode="json")), produce)


def check(settings: LineSettings, checkpoint: Checkpoint | None, thorough: bool) -> Lines:
    """How the shards are cut; what a plan must be is checked where it is made or read."""
    return [("prune", f"shards of at most {settings.prune.shard_size / 1e9:g} GB")]
