"""A recovery beside its output: ``bipline recover``, without ZenML or MLflow.

The Store is OUT.work, from which a killed run goes on; it goes when all is done. Under torchrun
every process trains, and the first alone reads and writes there.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import distributed

from bipline.base import extras
from bipline.base.progress import note
from bipline.compression.workers import Workers, joined_workers
from bipline.model.checkpoint import Checkpoint
from bipline.model.devices import choose_device, torch_dtype
from bipline.model.opening import open_checkpoint
from bipline.recovery import recover as core
from bipline.recovery.place import Place
from bipline.settings.line import ComputeSettings
from bipline.settings.recipes import Schedule
from bipline.stages import recover as stage
from bipline.stages.resolve import local_copy, resolve_model, resolve_texts
from bipline.stages.stage import Context
from bipline.storage.directory import copy_directory, refuse_occupied
from bipline.storage.local_store import LocalStore
from bipline.storage.work import work_directory
from bipline.values.recovery import RecoveryRecord

LONGEST_PATH = 4096


@dataclass(frozen=True)
class RecoveryPlaces:
    """What a recovery reads, as the user named it, and where it writes."""

    model: str
    text: str
    judge: str
    out: Path
    teacher: str | None = None
    adapter_out: Path | None = None
    downloads: Path = Path(".bipline/downloads")

    @property
    def last_good(self) -> Path:
        """Where the state before a loss that was NaN is put: beside OUT."""
        return self.out.with_name(f"{self.out.name}.{core.LAST_GOOD}")


def recover_to(
    places: RecoveryPlaces, recipe: Schedule, compute: ComputeSettings
) -> RecoveryRecord | None:
    """Train a model into ``places.out``; nothing lies there where the record is of a refusal.

    None for a process that only helps. Raises InvalidInput before any work is done where the
    request can be seen to fail.
    """
    extras.check("recover")
    for place in (places.out, places.adapter_out):
        if place is not None:
            refuse_occupied(place)
    device = choose_device(compute.device)
    with joined_workers() as workers:
        stage.check_processes(recipe, workers.count)
        inputs = _resolved(places)
        _check(inputs, recipe)
        note(f"device {device}, dtype {compute.named_dtype}")
        if workers.leads:
            return _led(places, inputs, recipe, compute, workers)
        dtype = torch_dtype(compute.named_dtype)
        _help(inputs.request(recipe, _dense(inputs)), device, dtype, workers)
    return None


def _resolved(places: RecoveryPlaces) -> stage.Inputs:
    """The model, the texts and the dense model by their digests, what is remote fetched."""
    model = resolve_model(places.model, places.downloads)
    dense = resolve_model(places.teacher, places.downloads) if places.teacher else None
    texts = resolve_texts({"text": places.text, "judge": places.judge}, places.downloads)
    pruned = local_copy(model, places.downloads)
    return stage.Inputs(model.identity, lambda: pruned, texts["text"], texts["judge"], dense)


def _dense(inputs: stage.Inputs) -> Checkpoint | None:
    return open_checkpoint(inputs.dense.location) if inputs.dense else None


def _check(inputs: stage.Inputs, recipe: Schedule) -> None:
    """Raise InvalidInput for a dense model or texts that the recipe cannot use."""
    pruned = open_checkpoint(inputs.place())
    core.check_teacher(pruned, _dense(inputs), recipe)
    core.check_inputs(pruned.folder, *inputs.sources, recipe)


def _led(
    places: RecoveryPlaces, inputs: stage.Inputs, recipe: Schedule, compute: ComputeSettings,
    workers: Workers,
) -> RecoveryRecord:  # fmt: skip
    """Train in OUT.work, and take out of it what the record says."""
    with work_directory(places.out.with_name(f"{places.out.name}.work")) as work:
        context = Context(LocalStore(work), compute, workers=workers)
        stored, record = stage.recovered(
            context, inputs, recipe, places.adapter_out, lambda folder: _tell(folder, workers)
        )
        _take(context.store.open(stored), record, places)
    return record


def _take(made: Path, record: RecoveryRecord, places: RecoveryPlaces) -> None:
    """The model into OUT, or what was trained before a loss that was NaN beside it."""
    if record.accepted:
        copy_directory(made, places.out)
    elif (made / core.LAST_GOOD).is_dir():
        shutil.copytree(made / core.LAST_GOOD, places.last_good, dirs_exist_ok=True)
        note(f"the last good state is kept in {places.last_good}")


def _tell(folder: Path, workers: Workers) -> None:
    """Tell those who help where the checkpoints lie."""
    if workers.count > 1:
        name = str(folder.absolute()).encode()
        distributed.broadcast(torch.tensor(list(name.ljust(LONGEST_PATH))), 0)


def _help(request: core.Request, device: torch.device, dtype: torch.dtype, own: Workers) -> None:
    """Train beside the first process, in the folder that it names."""
    name = torch.zeros(LONGEST_PATH, dtype=torch.int64)
    distributed.broadcast(name, 0)
    folder = Path(bytes(name.tolist()).decode().rstrip())
    core.help_to_train(request, Place(folder, device, dtype, own.rank, own.count))
