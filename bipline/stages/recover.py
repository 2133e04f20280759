"""Recover: a training after pruning, kept only where it helps.

The record lies in the manifest of what is stored. A refused recovery is stored too, as its
record alone: the next run with the same inputs need not train again to learn that it failed.
Where the loss became NaN, what was trained until the last good step lies beside the record.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from bipline.base import extras
from bipline.base.errors import InvalidInput
from bipline.compression.prune import KIND, declare_content
from bipline.model.checkpoint import Checkpoint
from bipline.model.devices import torch_dtype
from bipline.recovery import recover as core
from bipline.recovery.place import Place
from bipline.settings.compress import CompressSettings, RecoverSettings
from bipline.settings.recipes import Schedule
from bipline.stages.stage import Context, Lines, Stage
from bipline.storage.directory import DirectoryWriter, write_text
from bipline.storage.documents import read_documents
from bipline.storage.ngrams import check_overlap
from bipline.storage.store import Handle
from bipline.values.fitted_text import FITTED_NAME, FittedText, read_fitted
from bipline.values.recovery import RecoveryRecord
from bipline.values.resolution import ResolvedModel, ResolvedText

STAGE = Stage("recover", KIND, ("bipline.recovery.recover",))
REFUSED_KIND = "refused-recovery"


@dataclass(frozen=True)
class Inputs:
    """What a recovery starts from: a model by its digest, where it is opened, and the texts."""

    digest: str
    place: Callable[[], Path]
    text: ResolvedText
    judge: ResolvedText
    dense: ResolvedModel | None = None

    @property
    def sources(self) -> tuple[str, str]:
        """Where the text and the judge lie."""
        return self.text.location, self.judge.location

    @property
    def digests(self) -> dict[str, str]:
        """What a recovery is stored under, of what it starts from."""
        dense = {} if self.dense is None else {"dense": self.dense.identity}
        texts = {"text": self.text.sha256, "held_out": self.judge.sha256}
        return {"pruned": self.digest, **texts, **dense}

    def request(
        self, recipe: Schedule, dense: Checkpoint | None, adapter_out: Path | None = None
    ) -> core.Request:
        """What is asked of the training, beside the dense model as it was opened."""
        return core.Request(self.place(), *self.sources, recipe, dense, adapter_out)


def recover(
    context: Context,
    pruned: Handle,
    texts: Mapping[str, ResolvedText],
    settings: RecoverSettings,
    evaluation: Iterable[ResolvedText] = (),
    dense: ResolvedModel | None = None,
) -> tuple[Handle, RecoveryRecord]:
    """The recovered model, or the pruned one where the training did not help.

    Text that is also evaluation text is refused, and a judge that is, or is trained on.
    """
    text, judge = texts[settings.text], texts[settings.held_out]
    _check_overlap(text.location, judge.location, [each.location for each in evaluation])
    inputs = Inputs(pruned.content, lambda: context.store.open(pruned), text, judge, dense)
    stored, record = recovered(context, inputs, settings.recipe)
    return (stored if record.accepted else pruned), record


def recovered(
    context: Context,
    given: Inputs,
    recipe: Schedule,
    adapter_out: Path | None = None,
    tell: Callable[[Path], None] = lambda folder: None,
) -> tuple[Handle, RecoveryRecord]:
    """What is stored of a recovery, the merged model or the record of a refusal.

    ``tell`` is given the folder of the checkpoints before the training, for processes that help.
    """
    _check_overlap(*given.sources, [])

    def produce(writer: DirectoryWriter, work: Path) -> None:
        place = place_of(context, work)
        place.folder.mkdir(exist_ok=True)
        tell(place.folder)
        dense = context.opened(given.dense) if given.dense else None
        request = given.request(recipe, dense, adapter_out)
        record = core.recover(request, place, writer)
        keep = _keep_accepted if record.accepted else _keep_refused
        keep(request, record, place, writer)
        writer.info = {**writer.info, "recovery": record.model_dump(mode="json")}

    key = STAGE.key(given.digests, recipe.model_dump(mode="json"), _computing(context))
    stored = STAGE.run(context, key, produce)
    return stored, RecoveryRecord.model_validate(stored.info["recovery"])


def _computing(context: Context) -> dict[str, str]:
    """What of the machine's use decides the bytes; several processes add up in another order."""
    computing = {"device": context.device.type, "dtype": context.compute.named_dtype}
    if context.workers.count > 1:
        computing["processes"] = str(context.workers.count)
    return computing


def _keep_accepted(
    request: core.Request, record: RecoveryRecord, place: Place, writer: DirectoryWriter
) -> None:
    """The model stays, with all text that it or the pruned one was fitted on."""
    known = [FittedText.of(read_documents(each)) for each in (request.text, request.held_out)]
    before = read_fitted([request.pruned]) or FittedText()
    write_text(writer.path / FITTED_NAME, FittedText.joined([before, *known]).to_json())
    declare_content(writer)


def _keep_refused(
    request: core.Request, record: RecoveryRecord, place: Place, writer: DirectoryWriter
) -> None:
    """Nothing of the training stays but its last good state, where it has one."""
    for path in writer.path.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    writer.kind = REFUSED_KIND
    writer.info = {}
    core.keep_last_good(record, place, writer)


def place_of(context: Context, work: Path) -> Place:
    """Where a training of this context runs; its checkpoints lie in the work directory."""
    workers = context.workers
    dtype = torch_dtype(context.compute.named_dtype)
    return Place(work / "training", context.device, dtype, workers.rank, workers.count)


def check_processes(recipe: Schedule, processes: int) -> None:
    """Raise InvalidInput where a step's windows cannot be shared by the processes."""
    if recipe.batch_size % (recipe.accumulation * processes):
        raise InvalidInput(
            f"batch_size {recipe.batch_size} in {recipe.accumulation} parts cannot be shared by "
            f"{processes} processes; give a multiple of {recipe.accumulation * processes}"
        )


def _check_overlap(text: str, judge: str, evaluation: list[str]) -> None:
    check_overlap([Path(text), Path(judge)], list(map(Path, evaluation)), "recover")
    check_overlap([Path(text)], [Path(judge)], "recover")


def check(settings: CompressSettings, checkpoint: Checkpoint | None, thorough: bool) -> Lines:
    """What is trained, and the tokens it is trained on.

    Raises InvalidInput for texts that are too short, and where the extra is not installed.
    """
    section, recipe = settings.recover, settings.recover.recipe
    if not section.enabled:
        return [("recover", "off")]
    extras.check("recover")
    places = [settings.texts[name] for name in (section.text, section.held_out)]
    measured = [settings.texts[name] for name in settings.evaluate.texts]
    if not any(place.startswith("hf:") for place in (*places, *measured)):
        _check_overlap(places[0], places[1], measured)
    if checkpoint:
        core.check_teacher(checkpoint, checkpoint, recipe)
    if thorough and checkpoint and not any(place.startswith("hf:") for place in places):
        core.check_inputs(checkpoint.folder, places[0], places[1], recipe)
    steps, tokens = recipe.total_steps, recipe.trained_tokens
    told = [f"{recipe.kind}, {steps} steps = {tokens:,} tokens"]
    left = core.untrained(checkpoint) if checkpoint else ""
    return [("recover", "; ".join([*told, left] if left else told))]
