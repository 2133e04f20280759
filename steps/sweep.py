"""Sweep: every row is a step of its own; one step collects them, one tells the tracker."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict
from zenml import get_step_context, log_metadata, step

import materializers.comparison_value  # noqa: F401  (its import tells ZenML how rows are stored)
from bipline.base.errors import InvalidInput
from bipline.base.progress import heading, note
from bipline.comparison import measure as core
from bipline.comparison.files import comparison_csv, comparison_json
from bipline.comparison.grid import refusal_of, runs_windows
from bipline.comparison.report import render_comparison
from bipline.comparison.scoring import Wanted, take
from bipline.comparison.selection import Selection, best
from bipline.compression.allocation import RULES, rule_module
from bipline.compression.allocation.problem import Windows
from bipline.compression.calibrate import load_calibration
from bipline.compression.computing import Computing
from bipline.compression.criteria import CRITERIA, module_name
from bipline.compression.score import Calibration
from bipline.compression.statistics import KIND as STATISTICS
from bipline.delivery import comparison_tracking as tracking
from bipline.model.checkpoint import Checkpoint
from bipline.model.devices import choose_device, torch_dtype
from bipline.quality.evaluate import Running
from bipline.settings.compress import ScoreSection
from bipline.settings.sweep import ComputeSection, DrawSection, MeasureSection
from bipline.storage.digests import digest_json
from bipline.storage.directory import DirectoryWriter, write_text
from bipline.storage.store import Handle
from bipline.values.combination import Choice, Combination
from bipline.values.comparison import (
    ComparedCalibration,
    ComparedModel,
    Comparison,
    Outcome,
    Row,
    Tracked,
)
from bipline.values.record import EvaluationRecord
from bipline.values.resolution import Resolution
from steps.stage import FROM_JSON, Stage, cached_by, dense_checkpoint, store, text_digest
from steps.tracked import flattened

VERSION = "2"
CORE = "bipline.comparison.measure"
SCORING = "bipline.comparison.scoring"
REFUSAL, REFUSAL_NAME = "refusal", "refusal.txt"
KIND = "comparison"
RESULTS = {
    "comparison.json": comparison_json,
    "comparison.csv": comparison_csv,
    "comparison.html": render_comparison,
}
# ZenML's cache function cannot see the configuration, so it follows every criterion and rule.
SCORE = Stage(
    "score_sweep", VERSION, (SCORING, *(module_name(criterion) for criterion in CRITERIA))
)
ROW = Stage("row", VERSION, (CORE, *(rule_module(rule) for rule in RULES)))
COLLECT = Stage("collect", VERSION, ("bipline.comparison.report",))


class RowSection(BaseModel):
    """Everything of the configuration that one row depends on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    combination: Combination
    compute: ComputeSection
    evaluate: MeasureSection


def score_fingerprint() -> str:
    """See :meth:`steps.stage.Stage.fingerprint`."""
    return SCORE.fingerprint()


def row_fingerprint() -> str:
    """See :meth:`steps.stage.Stage.fingerprint`."""
    return ROW.fingerprint()


def collect_fingerprint() -> str:
    """See :meth:`steps.stage.Stage.fingerprint`."""
    return COLLECT.fingerprint()


@step(cache_policy=cached_by(f"{__name__}.score_fingerprint"))
def score_criterion(
    model: Resolution, calibration: Handle, section: Annotated[ScoreSection, FROM_JSON]
) -> Annotated[Handle, "statistics"]:
    """Statistics of one criterion with what they cost, or why there are none."""
    device = choose_device(section.device).type
    inputs = {"model": model.digest, "windows": calibration.digest, "device": device}
    key = SCORE.key(inputs, section, (SCORING, module_name(section.criterion)))
    criterion = Choice(name=section.criterion, options=section.options)

    def produce(writer: DirectoryWriter) -> None:
        checkpoint = dense_checkpoint(model)
        windows = _windows(checkpoint, calibration, section)
        drawn = Calibration(windows.token_ids, windows.digest)
        wanted = Wanted(criterion, section.seed, key)
        try:
            with SCORE.work(key) as work:
                take(checkpoint, drawn, wanted, windows.computing, work).save(writer)
        except InvalidInput as refusal:
            writer.kind = REFUSAL
            write_text(writer.path / REFUSAL_NAME, str(refusal))

    return SCORE.stored(key, STATISTICS, produce)


@step(cache_policy=cached_by(f"{__name__}.row_fingerprint"))
def measure_row(
    model: Resolution,
    calibration: Handle,
    statistics: Handle,
    dense_record: EvaluationRecord,
    evaluation_inputs: Resolution,
    section: Annotated[RowSection, FROM_JSON],
) -> Annotated[Outcome, "outcome"]:
    """Allocate, compensate, prune, measure, forget: one model's figures, or why it cannot be."""
    inputs = {
        "model": model.digest,
        "statistics": statistics.digest,
        "texts": text_digest(evaluation_inputs),
        "dense": dense_record.tensor_digest,
        "device": choose_device(section.evaluate.device).type,
    }
    if measures := runs_windows(section.combination):
        inputs["calibration"] = calibration.digest

    key = ROW.key(inputs, section, (CORE, rule_module(section.combination.allocation.name)))

    def produce() -> Outcome:
        place, checkpoint = Path(statistics.location), dense_checkpoint(model)
        samples, seqlen = load_calibration(Path(calibration.location)).token_ids.shape
        reason = refusal_of(checkpoint, section.combination, (samples, seqlen))
        if reason is None and statistics.kind == REFUSAL:
            reason = (place / REFUSAL_NAME).read_text(encoding="utf-8")
        if reason is not None:
            return Outcome(refusal=reason)
        windows = _windows(checkpoint, calibration, section.compute) if measures else None
        # Beside the store, because a model must have room there.
        with (
            TemporaryDirectory(prefix="row-", dir=store().root) as folder,
            ROW.work(key) as work,
        ):
            return core.measure(
                checkpoint, place, section.combination, windows,
                _evaluation(evaluation_inputs, section.evaluate), dense_record,
                Path(folder) / "pruned", work,
            )  # fmt: skip

    return ROW.stored_value(key, "outcome", Outcome, produce)


@step(cache_policy=cached_by(f"{__name__}.collect_fingerprint"))
def collect(
    outcomes: list[Outcome],
    dense_record: EvaluationRecord,
    calibration_inputs: Resolution,
    combinations: list[dict[str, Any]],
    section: Annotated[DrawSection, FROM_JSON],
) -> tuple[Annotated[Comparison, "comparison"], Annotated[Handle, "report"]]:
    """Put all rows beside each other, in the order of ``combinations``, and write the report."""
    tried = [Combination.model_validate(value) for value in combinations]
    rows = tuple(Row.of(*pair) for pair in zip(tried, outcomes, strict=True))
    comparison = Comparison(
        models={tried[0].model: _model(calibration_inputs, dense_record)},
        calibrations={tried[0].calibration: _calibration(calibration_inputs, section)},
        rows=rows,
    )

    def produce(writer: DirectoryWriter) -> None:
        for name, render in RESULTS.items():
            write_text(writer.path / name, render(comparison))

    # With seconds and memory, which the files tell too.
    inputs = {"comparison": digest_json(comparison.model_dump(mode="json"))}
    return comparison, COLLECT.stored(COLLECT.key(inputs, section), KIND, produce)


@step(enable_cache=False, experiment_tracker=True)
def track(
    comparison: Comparison,
    report: Handle,
    section: Annotated[Selection | None, FROM_JSON],
    config: dict[str, Any],
    provenance: dict[str, str],
) -> Annotated[Tracked, "tracked"]:
    """Pick the best, and tell MLflow: the report with this run, below it a run for every row."""
    heading("track")
    run = get_step_context().pipeline_run
    place = Path(report.location)
    found = best(comparison, section) if section else None
    chosen = "none" if found is None else found.rows[0].combination.label
    run_id = tracking.track_comparison(
        comparison,
        params=flattened(config),
        tags={
            **provenance, "zenml.run_id": str(run.id), "zenml.run_name": run.name, "best": chosen,
        },
        artifacts={
            **{name: (place / name).read_text(encoding="utf-8") for name in RESULTS},
            "config.json": json.dumps(config, indent=1, sort_keys=True) + "\n",
        },
    )  # fmt: skip
    note(f"{len(comparison.rows)} rows told; best: {chosen}")
    log_metadata({"version": VERSION, "output_digest": report.digest})
    return Tracked(mlflow_run_id=run_id, best=found)


def _windows(
    checkpoint: Checkpoint, calibration: Handle, section: ComputeSection | ScoreSection
) -> Windows:
    drawn = load_calibration(Path(calibration.location))
    device = choose_device(section.device)
    computing = Computing(torch_dtype(section.dtype), device, section.micro_batch)
    fitting = computing.within(None, checkpoint, drawn.token_ids)
    return Windows(drawn.token_ids, fitting, drawn.digest)


def _evaluation(inputs: Resolution, section: MeasureSection) -> core.Evaluation:
    texts = {name: Path(inputs.texts[name].location) for name in section.texts}
    return core.Evaluation(texts, section.protocol, Running(choose_device(section.device)))


def _model(inputs: Resolution, record: EvaluationRecord) -> ComparedModel:
    model = inputs.model
    return ComparedModel(
        source=model.source, revision=model.revision, licence=model.licence, record=record
    )


def _calibration(inputs: Resolution, section: DrawSection) -> ComparedCalibration:
    """The mix as one: its sources together, and a digest over them."""
    texts = {name: inputs.texts[name] for name in section.texts}
    return ComparedCalibration(
        source=" + ".join(text.source for text in texts.values()),
        sha256=next(iter(texts.values())).sha256 if len(texts) == 1 else text_digest(inputs),
        samples=section.samples,
        seqlen=section.seqlen,
    )
