"""Rows put together: the comparison of a sweep, and its report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bipline.comparison.files import RESULTS
from bipline.comparison.inputs import compared_calibration, compared_model
from bipline.settings.line import CalibrateSettings
from bipline.stages.stage import Context, Stage
from bipline.storage.digests import digest_json
from bipline.storage.directory import DirectoryWriter, write_text
from bipline.storage.store import Handle
from bipline.values.combination import Combination
from bipline.values.comparison import Comparison, Outcome, Row
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
    first, texts = combinations[0], [given.texts[name] for name in settings.texts]
    rows = tuple(Row.of(*pair) for pair in zip(combinations, outcomes, strict=True))
    return Comparison(
        models={first.model: compared_model(given.model, dense)},
        calibrations={first.calibration: compared_calibration(texts, settings)},
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
