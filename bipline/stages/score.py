"""Score: one pass over the calibration windows becomes sums and scores.

The sums are kept, so that another ratio, or another criterion that can use them, needs no pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from bipline.base.progress import note
from bipline.compression import criteria
from bipline.compression import score as core
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
from bipline.stages.stage import Context, Lines, Stage
from bipline.storage.digests import digest_file
from bipline.storage.directory import DirectoryWriter, copy_directory, occupied
from bipline.storage.store import Handle
from bipline.values.fitted_text import write_fitted
from bipline.values.resolution import ResolvedModel

CORE = "bipline.compression.score"
# An orchestrator's cache cannot see which criterion is meant, so it follows all of them.
STAGE = Stage("score", KIND, (CORE, *map(criteria.module_name, criteria.CRITERIA)))
PART = Stage("score_part", PARTIAL_KIND, STAGE.modules)


@dataclass(frozen=True)
class _Scoring:
    """A way to score: what every step of it follows from."""

    context: Context
    model: ResolvedModel
    calibration: Handle | None
    settings: ScoreSettings

    @cached_property
    def options(self) -> Options:
        criterion, options = self.settings.criterion, self.settings.criterion_option
        return criteria.options_of(criterion, self.context.seed, options)

    @property
    def checkpoint(self) -> Checkpoint:
        return self.context.opened(self.model)

    @property
    def drawn(self) -> Handle | None:
        """The calibration set where the criterion runs windows."""
        return self.calibration if criteria.needs_of(self.settings.criterion).windows else None

    @property
    def windows(self) -> Windows:
        drawn = self.drawn
        return windows_of(self.context, self.checkpoint, drawn) if drawn else Windows.none()

    def key(self, inputs: dict[str, str], computing: dict[str, Any] | None) -> str:
        """The key follows the chosen criterion's code alone."""
        criterion = self.settings.criterion
        described = {"criterion": criterion, "options": self.options.to_json_value()}
        modules = (CORE, *criteria.modules_of(criterion, self.options))
        return STAGE.key({"model": self.model.identity, **inputs}, described, computing, modules)

    def key_of_share(self, share: str) -> str:
        windows = {"windows": self.drawn.digest} if self.drawn else {}
        return self.key({"share": share, **windows}, self.context.computing)

    def scored(self, sums: Statistics) -> tuple[Statistics, Scores]:
        """Sums with the scores that follow from them."""
        criterion = self.settings.criterion
        return sums, core.compute_scores(self.checkpoint, sums, criterion, self.options)

    def run(
        self, work: Path, others: Sequence[Handle] = ()
    ) -> tuple[tuple[Statistics, Scores], str | None]:
        """Sums and scores, by one process or several, and the criterion whose sums served."""
        context, windows, criterion = self.context, self.windows, self.settings.criterion
        check_windows(criterion, self.options, len(windows.token_ids))
        chosen = criteria.load_criterion(criterion)
        for handle in others if chosen.NEEDS.family else ():
            sums, scores = load_statistics(context.store.open(handle))
            if not any(criteria.unmet_needs(chosen, self.options, block) for block in sums.blocks):
                note(f"{criterion}: its sums come from the pass of {scores.criterion}")
                return self.scored(sums), scores.criterion
        if self.drawn and context.compute.processes > 1 and context.workers.count == 1:
            return scored_by_processes(context, self.model, self.drawn, self.settings, work), None
        model, workers = self.checkpoint, context.workers
        return core.score_model(model, windows, criterion, self.options, work, workers), None


def score(
    context: Context,
    model: ResolvedModel,
    calibration: Handle | None,
    settings: ScoreSettings,
    others: Sequence[Handle] = (),
) -> Handle:
    """Statistics of every attention group and FFN channel.

    Sums of ``others`` on the same windows serve where they hold what the criterion needs.
    Raises InvalidInput where the criterion runs windows and there are none.
    """
    scoring = _Scoring(context, model, calibration, settings)
    if _saved(settings):
        return _from_saved(scoring, Path(str(settings.statistics)))

    def produce(writer: DirectoryWriter, work: Path) -> str | None:
        found, lender = scoring.run(work, others)
        save_statistics(*found, writer)
        write_fitted(writer.path, [context.store.open(calibration)] if calibration else [])
        return lender

    handle = STAGE.run(context, scoring.key_of_share("whole"), produce)
    if settings.statistics:
        copy_directory(context.store.open(handle), Path(settings.statistics))
    return handle


def help_to_score(
    context: Context, model: ResolvedModel, calibration: Handle | None, settings: ScoreSettings
) -> None:
    """What a process of torchrun does that is not the first, which keeps what all find."""
    if _saved(settings):
        return
    scoring = _Scoring(context, model, calibration, settings)
    key = scoring.key_of_share("whole")
    with context.store.work(f"score-{context.workers.rank}", key) as work:
        scoring.run(work)


def score_part(
    context: Context, model: ResolvedModel, calibration: Handle, settings: ScoreSettings, index: int
) -> Handle:
    """The sums of one part of the calibration windows: parts run wherever there is room."""
    scoring = _Scoring(context, model, calibration, settings)
    part, name = (index, settings.parts), f"score_part_{index + 1}"

    def produce(writer: DirectoryWriter, work: Path) -> None:
        inputs = scoring.checkpoint, scoring.windows, settings.criterion, scoring.options
        save_sums(core.score_part(*inputs, part, work), writer)

    return PART.run(context, scoring.key_of_share("{} of {}".format(*part)), produce, name)


def reduce_scores(
    context: Context,
    model: ResolvedModel,
    calibration: Handle,
    parts: Sequence[Handle],
    settings: ScoreSettings,
) -> Handle:
    """Add the parts' sums in chunk order and score: the bits, and the key, of a single pass."""
    scoring = _Scoring(context, model, calibration, settings)

    def produce(writer: DirectoryWriter, work: Path) -> None:
        sums = [load_sums(context.store.open(part))[0] for part in parts]
        save_statistics(*scoring.scored(core.reduce_parts(sums)), writer)
        write_fitted(writer.path, [context.store.open(calibration)])

    return STAGE.run(context, scoring.key_of_share("whole"), produce)


def reads_windows(settings: ScoreSettings) -> bool:
    """Whether scoring runs calibration windows: not by the weights alone, nor from saved sums."""
    return criteria.needs_of(settings.criterion).windows and not _saved(settings)


def _saved(settings: ScoreSettings) -> bool:
    return settings.statistics is not None and occupied(Path(settings.statistics))


def _from_saved(scoring: _Scoring, place: Path) -> Handle:
    """Statistics as they were saved, or another criterion's from the saved sums."""
    note(f"sums come from {place}; no window is scored")
    (sums, scores), handle = load_statistics(place), Handle.to_directory(place)
    asked = scoring.settings.criterion, scoring.options.to_json_value()
    if (scores.criterion, scores.options) == asked:
        core.hold_to_model(scoring.checkpoint, sums)
        # Statistics of an older version do not declare it.
        digest = digest_file(place / SCORES_NAME)
        return handle.model_copy(update={"info": {**handle.info, "scores": digest}})

    def produce(writer: DirectoryWriter, work: Path) -> str:
        save_statistics(*scoring.scored(sums), writer)
        write_fitted(writer.path, [place])
        return scores.criterion

    return STAGE.run(scoring.context, scoring.key({"sums": handle.digest}, None), produce)


def check(settings: LineSettings, checkpoint: Checkpoint | None, thorough: bool) -> Lines:
    """The criterion, and what its forward pass costs.

    Raises InvalidInput for a device, an option or a division of the work that cannot be.
    """
    section, compute = settings.score, settings.compute
    options = criteria.options_of(section.criterion, settings.seed, section.criterion_option)
    choose_device(compute.device)
    if not reads_windows(section):
        told = "from saved sums" if _saved(section) else "from the weights alone"
        return [("score", f"{section.criterion}, {told}")]
    samples, workers = settings.calibrate.samples, max(section.parts, compute.processes)
    if workers > 1:
        core.check_shared(section.criterion)
        share_of(samples or DEFAULT_SAMPLES, 0, workers)
    if samples is not None:
        check_windows(section.criterion, options, samples)
    text = f"{section.criterion} in {compute.dtype}"
    if compute.dtype == "auto":
        text = f"{section.criterion} in float32, or bfloat16 where it is quicker and keeps the same"
    if checkpoint is not None:
        samples = samples_of(checkpoint, settings.calibrate, [settings.compensate])
        operations = 2 * checkpoint.shape.linear_weights * samples * settings.calibrate.seqlen
        text += f", one forward pass of about {operations / 1e9:,.1f} GFLOP"
    if section.parts > 1:
        text += f", in {section.parts} parallel steps"
    return [("score", text)]
