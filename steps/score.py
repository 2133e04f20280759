"""Score: one pass over the calibration windows becomes sums and scores."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from zenml import step

from bipline.compression import score as core
from bipline.compression.calibrate import load_calibration
from bipline.compression.computing import Computing
from bipline.compression.criteria import CRITERIA, module_name, modules_of, options_of
from bipline.compression.criteria.interface import Options
from bipline.compression.statistics import (
    KIND,
    PARTIAL_KIND,
    load_sums,
    save_statistics,
    save_sums,
)
from bipline.model.devices import choose_device, torch_dtype
from bipline.settings.compress import ScoreSection
from bipline.storage.digests import digest_json
from bipline.storage.directory import DirectoryWriter
from bipline.storage.store import Handle
from bipline.values.resolution import Resolution
from steps.stage import FROM_JSON, Stage, cached_by, dense_checkpoint

VERSION = "3"
CORE = "bipline.compression.score"
# ZenML's cache function cannot see the section, so it follows every criterion.
STAGE = Stage("score", VERSION, (CORE, *(module_name(criterion) for criterion in CRITERIA)))


def fingerprint() -> str:
    """See :meth:`steps.stage.Stage.fingerprint`."""
    return STAGE.fingerprint()


@step(cache_policy=cached_by(f"{__name__}.fingerprint"))
def score(
    model: Resolution, calibration: Handle, section: Annotated[ScoreSection, FROM_JSON]
) -> Annotated[Handle, "statistics"]:
    """Score every attention group and FFN channel; the Store's key follows one criterion."""
    key = _key(model, calibration.digest, section, "whole")

    def produce(writer: DirectoryWriter) -> None:
        checkpoint, windows = dense_checkpoint(model), _windows(calibration)
        with STAGE.work(key) as work:
            statistics, scores = core.score_model(
                checkpoint,
                windows,
                section.criterion,
                _options(section),
                _computing(section).within(None, checkpoint, windows.token_ids),
                work,
            )
        save_statistics(statistics, scores, writer)

    return STAGE.stored(key, KIND, produce)


@step(cache_policy=cached_by(f"{__name__}.fingerprint"))
def score_part(
    model: Resolution,
    calibration: Handle,
    section: Annotated[ScoreSection, FROM_JSON],
    index: int,
) -> Annotated[Handle, "partial_statistics"]:
    """The sums of one part of the calibration windows: parts run wherever there is room."""
    key = _key(model, calibration.digest, section, f"{index} of {section.parts}")

    def produce(writer: DirectoryWriter) -> None:
        checkpoint, windows = dense_checkpoint(model), _windows(calibration)
        with STAGE.work(key) as work:
            statistics = core.score_part(
                checkpoint,
                windows,
                section.criterion,
                _options(section),
                _computing(section).within(None, checkpoint, windows.token_ids),
                (index, section.parts),
                work,
            )
        save_sums(statistics, writer)

    return STAGE.stored(key, PARTIAL_KIND, produce)


@step(cache_policy=cached_by(f"{__name__}.fingerprint"))
def reduce_scores(
    model: Resolution, parts: list[Handle], section: Annotated[ScoreSection, FROM_JSON]
) -> Annotated[Handle, "statistics"]:
    """Add the parts' sums in chunk order and score: the bits of a single pass."""
    key = _key(model, digest_json([part.digest for part in parts]), section, "reduced")

    def produce(writer: DirectoryWriter) -> None:
        statistics = core.reduce_parts([load_sums(Path(part.location))[0] for part in parts])
        options = _options(section)
        checkpoint = dense_checkpoint(model)
        scores = core.compute_scores(checkpoint, statistics, section.criterion, options)
        save_statistics(statistics, scores, writer)

    return STAGE.stored(key, KIND, produce)


def _key(model: Resolution, windows: str, section: ScoreSection, share: str) -> str:
    """The key of one way to score; it follows the chosen criterion alone."""
    device = choose_device(section.device).type
    inputs = {"model": model.digest, "windows": windows, "share": share, "device": device}
    # How many parts there are changes no sum, so a whole or reduced answer stays known.
    alike = section.model_copy(update={"parts": 1, "device": "auto"})
    return STAGE.key(inputs, alike, (CORE, *modules_of(section.criterion, _options(section))))


def _windows(calibration: Handle) -> core.Calibration:
    drawn = load_calibration(Path(calibration.location))
    return core.Calibration(drawn.token_ids, drawn.digest)


def _options(section: ScoreSection) -> Options:
    return options_of(section.criterion, section.seed, section.options)


def _computing(section: ScoreSection) -> Computing:
    return Computing(torch_dtype(section.dtype), choose_device(section.device), section.micro_batch)
