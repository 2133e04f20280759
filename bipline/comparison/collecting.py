"""Rows put together: the comparison of a sweep, its report, and what the tracker is told."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bipline.comparison.files import RESULTS
from bipline.comparison.tracking import track_comparison
from bipline.settings.base import flattened
from bipline.settings.line import CalibrateSettings
from bipline.stages.calibrate import DEFAULT_SAMPLES
from bipline.stages.stage import Context, Stage
from bipline.storage.digests import digest_json
from bipline.storage.directory import DirectoryWriter, write_text
from bipline.storage.store import Handle
from bipline.values.combination import Combination
from bipline.values.comparison import ComparedCalibration, ComparedModel, Comparison, Outcome, Row
from bipline.values.record import EvaluationRecord
from bipline.values.resolution import Resolution

STAGE = Stage("collect", "comparison", ("bipline.comparison.report",))


def collected(
    combinations: Sequence[Combination],
    outcomes: Sequence[Outcome],
    dense: EvaluationRecord,
    given: Resolution,
    settings: CalibrateSettings,
) -> Comparison:
    """One model's rows in the order of ``combinations``; ``given`` holds its calibration texts."""
    model, first = given.model, combinations[0]
    compared = ComparedModel(
        source=model.source, revision=model.revision, licence=model.licence, record=dense
    )
    rows = tuple(Row.of(*pair) for pair in zip(combinations, outcomes, strict=True))
    return Comparison(
        models={first.model: compared},
        calibrations={first.calibration: _calibration(given, settings)},
        rows=rows,
    )


def store_report(context: Context, comparison: Comparison) -> Handle:
    """The report and the files of a comparison, in the Store."""

    def produce(writer: DirectoryWriter, work: Path) -> None:
        for name, render in RESULTS.items():
            write_text(writer.path / f"comparison.{name}", render(comparison))

    # With seconds and memory, which the files tell too.
    inputs = {"comparison": digest_json(comparison.model_dump(mode="json"))}
    return STAGE.run(context, STAGE.key(inputs, {}), produce)


def track(
    comparison: Comparison, report: Path, config: dict[str, Any], tags: Mapping[str, str]
) -> str:
    """Tell MLflow: the report with this run, below it a run for every row; the run's id."""
    files = [f"comparison.{name}" for name in RESULTS]
    return track_comparison(
        comparison,
        params=flattened(config),
        tags=tags,
        artifacts={
            **{name: (report / name).read_text(encoding="utf-8") for name in files},
            "config.json": json.dumps(config, indent=1, sort_keys=True) + "\n",
        },
    )


def _calibration(given: Resolution, settings: CalibrateSettings) -> ComparedCalibration:
    """The mix as one: its sources together, and a digest over them."""
    texts = [given.texts[name] for name in settings.texts]
    digests = [text.sha256 for text in texts]
    return ComparedCalibration(
        source=" + ".join(text.source for text in texts),
        sha256=digests[0] if len(digests) == 1 else digest_json(sorted(digests)),
        samples=settings.samples or DEFAULT_SAMPLES,
        seqlen=settings.seqlen,
    )
