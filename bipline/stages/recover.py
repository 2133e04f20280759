"""Recover: a short training, kept only where it helps.

The record lies in the manifest of what is stored. A refused recovery is stored too, as its
record alone: the next run with the same inputs need not train again to learn that it failed.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from bipline.base import extras
from bipline.compression.prune import KIND
from bipline.model.checkpoint import Checkpoint
from bipline.recovery import lora as core
from bipline.settings.compress import CompressSettings, RecoverSettings
from bipline.stages.stage import Context, Lines, Stage
from bipline.storage.directory import DirectoryWriter, write_text
from bipline.storage.documents import read_documents
from bipline.storage.ngrams import check_overlap
from bipline.storage.store import Handle
from bipline.values.fitted_text import FITTED_NAME, FittedText, read_fitted
from bipline.values.record import RecoveryRecord
from bipline.values.resolution import ResolvedText

STAGE = Stage("recover", KIND, ("bipline.recovery.lora",))


def recover(
    context: Context,
    pruned: Handle,
    texts: Mapping[str, ResolvedText],
    settings: RecoverSettings,
    evaluation: Iterable[ResolvedText] = (),
) -> tuple[Handle, RecoveryRecord]:
    """The recovered model, or the pruned one where the training did not help.

    Text that is also evaluation text is refused, and a judge that is, or is trained on.
    """
    text, judge = texts[settings.text], texts[settings.held_out]
    sources = Path(text.location), Path(judge.location)
    _check_overlap(*sources, [Path(each.location) for each in evaluation])
    inputs = {"pruned": pruned.digest, "text": text.sha256, "held_out": judge.sha256}
    recipe = settings.recipe.model_dump(mode="json")

    def produce(writer: DirectoryWriter, work: Path) -> None:
        place = context.store.open(pruned)
        record = core.recover(place, *sources, settings.recipe, writer)
        if not record.accepted:
            _discard(writer)
        else:
            known = [FittedText.of(read_documents(source)) for source in sources]
            before = read_fitted([place]) or FittedText()
            write_text(writer.path / FITTED_NAME, FittedText.joined([before, *known]).to_json())
        writer.info = {**writer.info, "recovery": record.model_dump(mode="json")}

    stored = STAGE.run(context, STAGE.key(inputs, recipe, {"device": "cpu"}), produce)
    record = RecoveryRecord.model_validate(stored.info["recovery"])
    return (stored if record.accepted else pruned), record


def _check_overlap(text: Path, judge: Path, evaluation: list[Path]) -> None:
    check_overlap([text, judge], evaluation, "recover")
    check_overlap([text], [judge], "recover")


def _discard(writer: DirectoryWriter) -> None:
    """Nothing of the training stays."""
    for path in writer.path.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    writer.kind = "refused-recovery"
    writer.info = {}


def check(settings: CompressSettings, checkpoint: Checkpoint | None, thorough: bool) -> Lines:
    """The adapter and the tokens it is trained on.

    Raises InvalidInput for texts that are too short, and where the extra is not installed.
    """
    section, recipe = settings.recover, settings.recover.recipe
    if not section.enabled:
        return [("recover", "off")]
    extras.check("recover")
    places = [settings.texts[name] for name in (section.text, section.held_out)]
    measured = [settings.texts[name] for name in settings.evaluate.texts]
    if not any(place.startswith("hf:") for place in (*places, *measured)):
        _check_overlap(Path(places[0]), Path(places[1]), list(map(Path, measured)))
    if thorough and checkpoint and not any(place.startswith("hf:") for place in places):
        text, judge = map(Path, places)
        core.check_texts(checkpoint.folder, text, judge, recipe)
    tokens = recipe.steps * recipe.batch_size * recipe.seqlen
    return [("recover", f"LoRA rank {recipe.rank}, {recipe.steps} steps = {tokens:,} tokens")]
