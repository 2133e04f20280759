"""The line beside its output: ``bipline prune``, without ZenML or MLflow.

The Store is the work directory beside OUT, where the model, and corrections and statistics that
the user names, come to lie at once. A killed run goes on from there; it goes when all is done.
With a Store of the user's, what other drivers made there is found, and OUT is filled from it.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from bipline.base.errors import EnvironmentFailure, InvalidInput
from bipline.base.progress import note
from bipline.compression.auto import applies
from bipline.compression.workers import Workers, joined_workers
from bipline.model.checkpoint import Checkpoint
from bipline.model.devices import choose_device
from bipline.model.loading import import_libraries
from bipline.model.memory import gigabytes, watching_memory
from bipline.model.resolve import HUB
from bipline.settings.line import LineSettings
from bipline.stages import line
from bipline.stages.calibrate import samples_between
from bipline.stages.forecast import forecast
from bipline.stages.resolve import glance, known_checkpoint, resolve_model, resolve_texts
from bipline.stages.result import prune_summary
from bipline.stages.settled import settled
from bipline.stages.stage import Context, StageReport
from bipline.stages.targets import with_ratio
from bipline.storage.directory import copy_directory, occupied, refuse_occupied, write_text
from bipline.storage.local_store import LocalStore
from bipline.storage.manifest import MANIFEST_NAME, read_manifest
from bipline.storage.store import Handle, Store, open_store
from bipline.storage.work import has_progress, work_directory
from bipline.values.fitted_text import beside_plan, read_fitted
from bipline.values.summary import PruneSummary


@dataclass(frozen=True)
class Places:
    """Where things go: ``work`` is OUT.work and ``store`` the work directory, unless named.

    With ``floor`` the machine's rates are measured at the end, for long stages.
    """

    out: Path
    work: Path | None = None
    store: str | None = None
    plan_out: Path | None = None
    floor: bool = False
    downloads: Path = Path(".bipline/downloads")

    def work_of(self, workers: Workers) -> Path:
        """The work directory of a process: the first one's bears no number."""
        path = self.work or self.out.with_name(f"{self.out.name}.work")
        return path if workers.leads else path.with_name(f"{path.name}-{workers.rank}")

    def finished(self) -> bool:
        """Whether a killed run had finished ``out``: then what it worked in is still there.

        That is the receipt in the work directory, or with a Store of the user's the directory
        itself.
        """
        work = self.work_of(Workers())
        killed = work.is_dir() if self.store else any((work / "prune").glob("*.journal.json"))
        return killed and (self.out / MANIFEST_NAME).is_file()


def prune_to(settings: LineSettings, places: Places) -> PruneSummary | None:
    """Calibrate, score, allocate, compensate and prune into ``places.out``.

    None for a worker that only helps. Raises InvalidInput before any work is done where the
    request can be seen to fail.
    """
    device = choose_device(settings.compute.device)
    if not places.finished():
        refuse_occupied(places.out)
    settings, checkpoint = _checked(settings, places.out)
    note(f"device {device}, dtype {settings.compute.dtype}")
    import_libraries()
    reports: list[StageReport] = []
    with (
        watching_memory() as peak,
        joined_workers() as workers,
        work_directory(places.work_of(workers)) as work,
    ):
        taken_up, store = has_progress(work), _store(settings, places, work, workers)
        context = Context(
            store, settings.compute, settings.seed, workers, places.downloads, reports.append
        )
        if places.store:
            model = resolve_model(settings.model, places.downloads)
        else:
            model = glance(settings.model, places.downloads, checkpoint)
            if checkpoint and not settings.model.startswith(HUB):  # of that it is an outline
                context.checkpoints[model.identity] = checkpoint
        texts = resolve_texts(settings.texts, places.downloads)
        try:
            made = line.smaller(context, model, texts, settings)
        except InvalidInput as error:
            if taken_up:  # it may not fit what an earlier run left, as a model that changed since
                again = f"an earlier run's work was taken up: delete {work} to start again"
                raise InvalidInput(f"{error}; {again}") from None
            raise
        if made is None:
            return None
        if places.store and not _holds(places.out, made.model):
            copy_directory(store.open(made.model), places.out)
        if places.plan_out:
            write_text(places.plan_out, made.plan.to_json())
            if known := read_fitted([places.out]):
                write_text(beside_plan(places.plan_out), known.to_json())
    floor = places.floor and not taken_up
    return prune_summary(settings, context.opened(model), made, places.out, reports, peak, floor)


def _checked(settings: LineSettings, out: Path) -> tuple[LineSettings, Checkpoint | None]:
    """The settings with everything named, and the model where it can be opened already.

    What can be seen to fail was looked at.
    """
    if not applies(settings) and not settings.allocate.budget_is_given:
        raise InvalidInput(
            "give --ratio (a share between 0 and 1), --target-parameters, --target-size or --plan"
        )
    settings, reason = settled(settings)
    checkpoint = known_checkpoint(settings.model)
    line.check_stages(settings, checkpoint)
    if not settings.texts and (reader := line.runs_windows(settings)):
        who = "criterion auto" if reason else reader
        raise InvalidInput(f"{who} needs --calibration FILE or hf:NAME")
    if reason:
        note(reason)
    if checkpoint:
        _check_disk(settings, checkpoint, out)
        if line.runs_windows(settings) and choose_device(settings.compute.device).type == "cpu":
            told = f"effort {settings.effort}: {forecast(settings, checkpoint)}"
            most, fewest = samples_between(checkpoint, settings.calibrate, [settings.compensate])
            if fewest < most:
                told += f"; less where the text holds fewer than {most} windows"
            auto = settings.compute.dtype == "auto"
            note(f"{told} in float32, less where dtype auto takes bfloat16" if auto else told)
    return settings, checkpoint


def _check_disk(settings: LineSettings, checkpoint: Checkpoint, out: Path) -> None:
    """Raise EnvironmentFailure when what is to be written cannot fit on the disk."""
    if applies(settings):
        return
    section, blocks = with_ratio(checkpoint, settings.allocate), checkpoint.shape.linear_weights
    whole = checkpoint.parameters if section.ratio_of == "total" else blocks
    size = int(checkpoint.weight_bytes * (1 - section.ratio * whole / checkpoint.parameters))
    place = next(parent for parent in out.absolute().parents if parent.exists())
    free = shutil.disk_usage(place).free
    if size > free:
        raise EnvironmentFailure(
            f"no space left at {place}: the pruned model needs {gigabytes(size)}, "
            f"{gigabytes(free)} are free"
        )


def _store(settings: LineSettings, places: Places, work: Path, workers: Workers) -> Store:
    """The Store of the user, or the work directory with outputs where the user wants them."""
    if places.store:
        return open_store(places.store, places.downloads)
    if not workers.leads:
        return LocalStore(work)
    named = {"score": settings.score.statistics, "compensate": settings.compensate.corrections}
    free = {stage: Path(place) for stage, place in named.items() if place}
    outputs = {stage: place for stage, place in free.items() if not occupied(place)}
    return LocalStore(work, {"prune": places.out, **outputs})


def _holds(out: Path, model: Handle) -> bool:
    """Whether a killed run had copied this model already."""
    return (out / MANIFEST_NAME).is_file() and read_manifest(out).digest == model.digest
