"""Prune: a model and a plan, perhaps with corrections, become a smaller model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bipline.compression import prune as core
from bipline.compression.corrections import open_corrections
from bipline.compression.criteria import needs_of
from bipline.delivery.prune_card import write_prune_card
from bipline.model.checkpoint import Checkpoint
from bipline.settings.line import LineSettings, PruneSettings
from bipline.stages.stage import Context, Lines, Stage
from bipline.storage.digests import digest_json
from bipline.storage.directory import DirectoryWriter, write_text
from bipline.storage.folder import Folder
from bipline.storage.store import Handle
from bipline.values.fitted_text import FITTED_NAME, FittedText, fitted_in, read_fitted
from bipline.values.plan import PruningPlan
from bipline.values.resolution import ResolvedModel

STAGE = Stage("prune", core.KIND, ("bipline.compression.prune", "bipline.delivery.prune_card"))


def prune(
    context: Context,
    model: ResolvedModel,
    plan: PruningPlan,
    corrections: Handle | None,
    settings: PruneSettings,
    fitted: Sequence[Path] = (),
) -> Handle:
    """Write the smaller model, with corrections where the plan was compensated.

    ``fitted`` is where it may be told which text the plan was fitted on; so is the model's folder.
    """
    inputs = {"model": model.identity, "plan": plan.digest, "tokenizer": model.tokenizer_digest}
    if corrections:
        inputs["corrections"] = corrections.digest
        fitted = [*fitted, context.store.open(corrections)]
    known = _fitted(context.opened(model).folder, plan, fitted)
    if known is not None:
        inputs["fitted text"] = digest_json(known.model_dump(mode="json"))

    def produce(writer: DirectoryWriter, work: Path) -> None:
        corrected = open_corrections(context.store.open(corrections))[1] if corrections else None
        core.write_pruned(context.opened(model), plan, writer, settings.shard_size, corrected)
        if known is not None:
            write_text(writer.path / FITTED_NAME, known.to_json())
        shape = context.opened(model).shape
        dense = shape.num_key_value_heads, shape.within(plan.within_experts).ffn_units
        write_prune_card(model, plan, dense, writer.path / "README.md")
        core.declare_content(writer)

    return STAGE.run(context, STAGE.key(inputs, settings.model_dump(mode="json")), produce)


def _fitted(folder: Folder, plan: PruningPlan, places: Sequence[Path]) -> FittedText | None:
    """What is known of the text: nothing at all was read for weights alone; None for unknown."""
    reads = plan.compensated is not None or needs_of(plan.criterion).windows
    known = read_fitted(places) if reads else FittedText()
    before = fitted_in(folder) or FittedText()
    return None if known is None else FittedText.joined([before, known])


def check(settings: LineSettings, checkpoint: Checkpoint | None, thorough: bool) -> Lines:
    """How the shards are cut; what a plan must be is checked where it is made or read."""
    return [("prune", f"shards of at most {settings.prune.shard_size / 1e9:g} GB")]
