"""The functions of ``import bipline``: what each command does, with keywords named as its flags.

Every function returns a typed value and raises one of three errors (:mod:`bipline.base.errors`).
Heavy libraries are imported when a function is called.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bipline.base.errors import InvalidInput
from bipline.face import named_places
from bipline.face.audited import audit, audit_registry
from bipline.face.keywords import (
    Place,
    Sources,
    comparison_settings,
    given_values,
    line_settings,
    measurement,
    named_texts,
    task_names,
    task_source,
)
from bipline.face.output import write_json
from bipline.face.recovering import recover
from bipline.face.registered import history, promote, rollback
from bipline.face.running import compress, sweep
from bipline.face.several import compress_each
from bipline.face.vouched import sign, verify
from bipline.settings.base import MethodOptions
from bipline.settings.compress import ENGINE_SETTINGS
from bipline.settings.line import ComputeSettings
from bipline.settings.loading import validated
from bipline.settings.protocol import Protocol
from bipline.settings.stack import USUAL_STATE

if TYPE_CHECKING:
    from bipline.values.comparison import Comparison
    from bipline.values.export import ExportRecord
    from bipline.values.record import EvaluationRecord
    from bipline.values.record_difference import RecordDifference
    from bipline.values.speed import Speeds
    from bipline.values.summary import PruneSummary

STATE = USUAL_STATE


def prune(
    model: Place,
    out: Place,
    *,
    calibration: Sources | None = None,
    work: Place | None = None,
    store: str | None = None,
    plan_out: Place | None = None,
    json_file: Place | None = None,
    floor: bool = False,
    state: Place = STATE,
    **settings: Any,
) -> PruneSummary | None:
    """Prune a model into the directory ``out``; a killed run goes on from ``OUT.work``.

    ``calibration`` is a text, several, or texts with their weights in the mix; ``settings`` are
    the fields of :mod:`bipline.settings.line`, such as ``ratio=0.35`` or ``device="cpu"``.
    None for a process of torchrun that only helps. Raises InvalidInput before any work where the
    request can be seen to fail.
    """
    from bipline.stages.beside import Places, prune_to

    places = Places(
        Path(out), Path(work) if work else None, store, Path(plan_out) if plan_out else None,
        floor,
        Path(state) / "downloads",
    )  # fmt: skip
    chosen = line_settings(model, calibration, settings)
    named_places.check_prune(
        chosen, out=out, work=work, store=store, plan_out=plan_out, json_file=json_file, state=state
    )
    result = prune_to(chosen, places)
    if result is not None:
        write_json(json_file, "prune", result.model_dump(mode="json"))
    return result


def evaluate(
    model: Place,
    *,
    texts: Mapping[str, Place] | None = None,
    tasks: str | Sequence[str] = (),
    task_data: Place | None = None,
    baseline: Place | None = None,
    protocol: Place | None = None,
    device: str | None = None,
    max_memory: int | str | None = None,
    allow_fitted: bool = False,
    json_file: Place | None = None,
    state: Place = STATE,
    **settings: Any,
) -> dict[str, EvaluationRecord]:
    """Perplexity, zero-shot accuracy and speed: records of ``model``, and ``baseline`` if given.

    ``protocol`` is quick, llm-pruner-128, standard-2048 or a YAML file, and brings texts, tasks and
    settings; ``settings``, the fields of :class:`bipline.settings.protocol.Protocol`, change it. A
    text that a model was fitted on is refused, or with ``allow_fitted`` told.
    """
    from bipline.stages.evaluate import evaluate_models

    compute = {"device": device, "max_memory": max_memory}
    models = {"model": str(model), **({} if baseline is None else {"baseline": str(baseline)})}
    measured = measurement(protocol, texts, tasks, task_data, settings)
    chosen, sources, rows = measured.protocol, measured.texts, measured.tasks
    inputs = {f"--text {name}": text for name, text in sources.items()}
    inputs |= {f"--tasks {name}": place for name, place in rows.items()}
    named_places.check_evaluate([model, baseline], inputs, json_file=json_file, state=state)
    records = evaluate_models(
        models, sources, rows, chosen, validated(ComputeSettings, given_values(compute)),
        Path(state) / "downloads", allow_fitted,
    )  # fmt: skip
    values = {name: record.to_json_value(items=True) for name, record in records.items()}
    write_json(json_file, "evaluate", {**values.pop("model"), **values})
    return records


def diff(
    before: Place,
    after: Place,
    *,
    registry: str | None = None,
    json_file: Place | None = None,
    state: Place | None = None,
) -> RecordDifference:
    """What two measured models differ in, pair by pair on the same windows and rows.

    Each is a package (a directory, ``s3://``, ``hf:`` or ``models:/NAME@ALIAS``), or the JSON of
    ``evaluate``. Raises Refused, naming the first field, where they were measured under different
    protocols.
    """
    from bipline.audits.opening import read_measured_at
    from bipline.stages.resolve import REGISTRY
    from bipline.values.record_difference import RecordDifference

    folder, places = Path(state or STATE), [str(before), str(after)]
    named_places.check_diff(places, json_file=json_file, state=folder)
    if any(place.startswith(REGISTRY) for place in places):
        from bipline.stages.promote import registry_address

        registry = registry_address(registry, None if state is None else folder, folder)
    one, other = (read_measured_at(place, registry, folder / "downloads") for place in places)
    difference = RecordDifference.of(one, other)
    write_json(json_file, "diff", difference.model_dump(mode="json"))
    return difference


def compare(
    models: Place | Sequence[Place],
    out: Place,
    *,
    calibration: Place | Sequence[Place] = (),
    texts: Mapping[str, Place] | None = None,
    tasks: str | Sequence[str] = (),
    task_data: Place | None = None,
    jobs: int = 1,
    keep: bool = False,
    json_file: Place | None = None,
    csv_file: Place | None = None,
    html_file: Place | None = None,
    state: Place = STATE,
    **settings: Any,
) -> Comparison:
    """Measure many ways to prune side by side; results lie in ``out``, which a rerun goes on from.

    ``settings`` are the fields of :class:`bipline.settings.sweep.GridSettings` (criteria, methods,
    ratios, seeds, ..., each a sequence or a text with commas), of the common ones of an
    allocation, of calibrate and compute, of :class:`bipline.settings.protocol.Protocol` (such as
    ``bos``, ``limit`` and ``speed``), and ``evaluation_seqlen``. ``tasks`` and ``task_data`` are
    those of :func:`evaluate`.
    """
    from bipline.comparison.engine import compare as compare_all
    from bipline.comparison.files import results_in, write_results
    from bipline.comparison.inputs import named, resolve_inputs

    chosen = comparison_settings(settings)
    sources = [models] if isinstance(models, (str, Path)) else list(models)
    named_models = named("MODEL", [str(each) for each in sources])
    if not calibration:
        raise InvalidInput("no calibration text: give --calibration FILE or hf:NAME")
    calibration = [calibration] if isinstance(calibration, (str, Path)) else calibration
    calibrations = named("--calibration", [str(each) for each in calibration])
    evaluation = named_texts(texts)
    rows = {name: task_source(name, task_data) for name in task_names(tasks)}
    copies = {"json": json_file, "csv": csv_file, "html": html_file}
    read = [*calibration, *evaluation.values(), *rows.values()]
    named_places.check_compare(sources, read, out=out, files=copies, state=state)
    downloads = Path(state) / "downloads"
    shots = chosen.evaluate.protocol.num_fewshot
    inputs = resolve_inputs(named_models, calibrations, evaluation, downloads, rows, shots)
    comparison = compare_all(chosen, inputs, Path(out), jobs, keep)
    write_results(comparison, results_in(Path(out)))
    write_results(comparison, {suffix: Path(file) for suffix, file in copies.items() if file})
    return comparison


def export(
    model: Place,
    out: Place,
    *,
    format: str = "gguf",
    texts: Mapping[str, Place] | None = None,
    json_file: Place | None = None,
    state: Place = STATE,
    **settings: Any,
) -> ExportRecord:
    """Write a model in another format into the directory ``out``, verified by its engine.

    ``settings`` are the fields of :class:`bipline.settings.gguf.GgufSettings`, such as
    ``type="q8_0"``, or of :class:`bipline.settings.onnx.OnnxSettings`; on ``texts`` the perplexity
    of what was written is measured.
    """
    from bipline.delivery.formats.registry import engine_format
    from bipline.stages.export import export_model

    named = {name: str(text) for name, text in (texts or {}).items()}
    kind = ENGINE_SETTINGS[engine_format(format).name]
    chosen = validated(kind, given_values(settings))
    named_places.check_export(model, named, out=out, json_file=json_file, state=state)
    downloads = Path(state) / "downloads"
    record = export_model(str(model), Path(out), format, named, chosen, downloads)
    write_json(json_file, "export", record.model_dump(mode="json"))
    return record


def speed(
    model: Place,
    *,
    baseline: Place | None = None,
    device: str | None = None,
    json_file: Place | None = None,
    state: Place = STATE,
    **protocol: Any,
) -> Speeds:
    """Speeds of ``model``, and of a dense ``baseline`` that takes turns with it.

    Both are model directories, or .gguf files that llama.cpp serves, or addresses of servers that
    speak OpenAI's protocol, as vLLM's. ``protocol`` are ``speed_prompt_tokens`` and the other
    fields of :class:`bipline.settings.protocol.Protocol` that begin so, and ``dtype``.
    """
    from bipline.stages.speed import measure_sources

    named_places.check_speed([model, baseline], json_file=json_file, state=state)
    sources = {} if baseline is None else {"dense": str(baseline)}
    found = measure_sources(
        {**sources, "model": str(model)},
        validated(Protocol, given_values(protocol)),
        validated(ComputeSettings, given_values({"device": device})),
        Path(state) / "downloads",
    )
    write_json(json_file, "speed", found.model_dump(mode="json"))
    return found


__all__ = [
    "MethodOptions", "audit", "audit_registry", "compare", "compress", "compress_each", "diff",
    "evaluate", "export",
    "history", "promote", "prune", "recover", "rollback", "sign", "speed", "sweep", "verify",
]  # fmt: skip
