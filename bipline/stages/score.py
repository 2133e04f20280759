"""Score: one pass over the calibration windows becomes sums and scores.

The sums are kept, so that another ratio, or another criterion that can use them, needs no pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bipline.base.progress import note
from bipline.compression import score as core
from bipline.compression.criteria import (
    CRITERIA,
    load_criterion,
    module_name,
    modules_of,
    needs_of,
    options_of,
    unmet_needs,
)
from bipline.compression.criteria.interface import Options
from bipline.compression.gradient_sums import check_windows
from bipline.compression.partial_sums import share_of
from bipline.compression.statistics import (
    KIND,
    PARTIAL_KIND,
    SCORES_NAME,
    Scores,
    Statistics,
    load_statistics,
    load_sums,
    save_statistics,
    save_sums,
)
from bipline.compression.windows import Windows
from bipline.model.checkpoint import Checkpoint
from bipline.model.devices import choose_device
from bipline.settings.line import LineSettings, ScoreSettings
from bipline.stages.calibrate import DEFAULT_SAMPLES, samples_of, windows_of
from bipline.stages.processes import scored_by_processes
from bipline.stages.stage import Context, Stage
from bipline.storage.digests import digest_file
from bipline.storage.directory import DirectoryWriter, copy_directory, occupied
from bipline.storage.store import Handle
from bipline.values.fitted_text import write_fitted
from bipline.values.resolution import ResolvedModel

CORE = "bipline.compression.score"
# An orchestrator's cache cannot see which criterion is meant, so it follows all of them.
STAGE = Stage("score", KIND, (CORE, *(module_name(criterion) for criterion in CRITERIA)))
PART = Stage("score_part", PARTIAL_KIND, STAGE.modules)


def reads_windows(settings: ScoreSettings) -> bool:
    """Whether scoring runs calibration windows: not by the weights alone, nor from saved sums."""
    return needs_of(settings.criterion).windows and not _saved(settings)


def score(
    context: Context,
    model: ResolvedModel,
    calibration: Handle | None,
    settings: ScoreSettings,
    others: Sequence[Handle] = (),
) -> Handle | None:
    """Statistics of every attention group and FFN channel; None for a worker that only helps.

    Sums of ``others`` on the same windows serve where they hold what the criterion needs.
    Raises InvalidInput where the criterion runs windows and there are none.
    """
    if _saved(settings):
        return _from_saved(context, model, Path(str(settings.statistics)), settings)
    key = _key(context, model, calibration, settings, "whole")
    if not context.workers.leads:  # the first process keeps what all find
        with context.store.work(f"score-{context.workers.rank}", key) as work:
            _scored(context, model, calibration, settings, work)
        return None

    def produce(writer: DirectoryWriter, work: Path) -> str | None:
        found, lender = _scored(context, model, calibration, settings, work, others)
        save_statistics(*found, writer)
        write_fitted(writer.path, [context.store.open(calibration)] if calibration else [])
        return lender

    handle = STAGE.run(context, key, produce)
    if settings.statistics and not _saved(settings):
        copy_directory(context.store.open(handle), Path(settings.statistics))
    return handle


def score_part(
    context: Context, model: ResolvedModel, calibration: Handle, settings: ScoreSettings, index: int
) -> Handle:
    """The sums of one part of the calibration windows: parts run wherever there is room."""
    key = _key(context, model, calibration, settings, f"{index} of {settings.parts}")
    options, part = _options(context, settings), (index, settings.parts)

    def produce(writer: DirectoryWriter, work: Path) -> None:
        checkpoint = context.opened(model)
        windows = windows_of(context, checkpoint, calibration)
        statistics = core.score_part(checkpoint, windows, settings.criterion, options, part, work)
        save_sums(statistics, writer)

    return PART.run(context, key, produce, title=f"score_part_{index + 1}")


def reduce_scores(
    context: Context,
    model: ResolvedModel,
    calibration: Handle,
    parts: Sequence[Handle],
    settings: ScoreSettings,
) -> Handle:
    """Add the parts' sums in chunk order and score: the bits, and the key, of a single pass."""
    key = _key(context, model, calibration, settings, "whole")

    def produce(writer: DirectoryWriter, work: Path) -> None:
        sums = [load_sums(context.store.open(part))[0] for part in parts]
        statistics = core.reduce_parts(sums)
        options = _options(context, settings)
        scores = core.compute_scores(context.opened(model), statistics, settings.criterion, options)
        save_statistics(statistics, scores, writer)
        write_fitted(writer.path, [context.store.open(calibration)])

    return STAGE.run(context, key, produce)


def scores_in(context: Context, statistics: Handle) -> Scores:
    """The scores of stored statistics."""
    return load_statistics(context.store.open(statistics))[1]


def _saved(settings: ScoreSettings) -> bool:
    return settings.statistics is not None and occupied(Path(settings.statistics))


def _from_saved(
    context: Context, model: ResolvedModel, place: Path, settings: ScoreSettings
) -> Handle:
    """Statistics as they were saved, or another criterion's from the saved sums."""
    note(f"sums come from {place}; no window is scored")
    checkpoint, options = context.opened(model), _options(context, settings)
    statistics, scores = load_statistics(place)
    if (scores.criterion, scores.options) == (settings.criterion, options.to_json_value()):
        core.hold_to_model(checkpoint, statistics)
        handle = Handle.to_directory(place)
        # Statistics of an older version do not declare it.
        digest = digest_file(place / SCORES_NAME)
        return handle.model_copy(update={"info": {**handle.info, "scores": digest}})
    inputs = {"model": model.identity, "sums": Handle.to_directory(place).digest}
    modules = (CORE, *modules_of(settings.criterion, options))
    key = STAGE.key(inputs, _described(settings, options), None, modules)

    def produce(writer: DirectoryWriter, work: Path) -> str:
        found = core.compute_scores(checkpoint, statistics, settings.criterion, options)
        save_statistics(statistics, found, writer)
        write_fitted(writer.path, [place])
        return scores.criterion

    return STAGE.run(context, key, produce)


def _scored(
    context: Context,
    model: ResolvedModel,
    calibration: Handle | None,
    settings: ScoreSettings,
    work: Path,
    others: Sequence[Handle] = (),
) -> tuple[tuple[Statistics, Scores], str | None]:
    """Sums and scores, by one process or several, and the criterion whose sums served."""
    checkpoint, options = context.opened(model), _options(context, settings)
    windows = _windows(context, checkpoint, calibration, settings)
    check_windows(settings.criterion, options, len(windows.token_ids))
    chosen = load_criterion(settings.criterion)
    for handle in others if chosen.NEEDS.family else ():
        statistics, scores = load_statistics(context.store.open(handle))
        if not any(unmet_needs(chosen, options, sums) for sums in statistics.blocks):
            note(f"{settings.criterion}: its sums come from the pass of {scores.criterion}")
            found = core.compute_scores(checkpoint, statistics, settings.criterion, options)
            return (statistics, found), scores.criterion
    if context.compute.processes > 1 and context.workers.count == 1:
        return scored_by_processes(
            model, windows, settings, context.compute, context.seed, work
        ), None
    return core.score_model(
        checkpoint, windows, settings.criterion, options, work, context.workers
    ), None


def _windows(
    context: Context,
    checkpoint: Checkpoint,
    calibration: Handle | None,
    settings: ScoreSettings,
) -> Windows:
    if calibration is None or not needs_of(settings.criterion).windows:
        return Windows.none()
    return windows_of(context, checkpoint, calibration)


def _key(
    context: Context,
    model: ResolvedModel,
    calibration: Handle | None,
    settings: ScoreSettings,
    share: str,
) -> str:
    """The key of one way to score; it follows the chosen criterion's code alone."""
    options = _options(context, settings)
    inputs = {"model": model.identity, "share": share}
    if needs_of(settings.criterion).windows and calibration is not None:
        inputs["windows"] = calibration.digest
    modules = (CORE, *modules_of(settings.criterion, options))
    return STAGE.key(inputs, _described(settings, options), context.computing, modules)


def _described(settings: ScoreSettings, options: Options) -> dict[str, object]:
    return {"criterion": settings.criterion, "options": options.to_json_value()}


def _options(context: Context, settings: ScoreSettings) -> Options:
    return options_of(settings.criterion, context.seed, settings.criterion_option)


def check(settings: LineSettings, checkpoint: Checkpoint | None, thorough: bool) -> None:
    """Raise InvalidInput for a device, an option or a division of the work that cannot be."""
    section, compute = settings.score, settings.compute
    options = options_of(section.criterion, settings.seed, section.criterion_option)
    choose_device(compute.device)
    workers = max(section.parts, compute.processes)
    if workers > 1 and reads_windows(section):
        core.check_shared(section.criterion)
        share_of(settings.calibrate.samples or DEFAULT_SAMPLES, 0, workers)
    samples = settings.calibrate.samples
    if samples is not None and reads_windows(section):
        check_windows(section.criterion, options, samples)


def tell(settings: LineSettings, checkpoint: Checkpoint | None) -> list[tuple[str, str]]:
    """The criterion, and what its forward pass costs."""
    section = settings.score
    if not reads_windows(section):
        told = "from saved sums" if _saved(section) else "from the weights alone"
        return [("score", f"{section.criterion}, {told}")]
    text = f"{section.criterion} in {settings.compute.dtype}"
    if checkpoint is not None:
        samples = samples_of(checkpoint, settings.calibrate, settings.compensate)
        operations = 2 * checkpoint.shape.linear_weights * samples * settings.calibrate.seqlen
        text += f", one forward pass of about {operations / 1e9:,.1f} GFLOP"
    if section.parts > 1:
        text += f", in {section.parts} parallel steps"
    return [("score", text)]
