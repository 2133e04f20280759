"""What is compared: models and texts by short names, and windows that a model can take.

Everything that can be seen to fail is found here, before a weight is computed with: texts that
are too short for the windows, windows longer than a model takes, memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from bipline.base.errors import InvalidInput
from bipline.base.progress import note
from bipline.comparison.grid import compensations_of, line_of
from bipline.compression.compensation.checks import needed_bytes
from bipline.compression.criteria import needs_of
from bipline.compression.gradient_sums import gradient_memory
from bipline.model.block_loop import BlockLoop
from bipline.model.checkpoint import Checkpoint
from bipline.model.devices import choose_device, torch_dtype
from bipline.model.memory import memory_need
from bipline.model.opening import open_checkpoint
from bipline.model.resolve import HUB
from bipline.model.tokenizer import tokenizer_of
from bipline.quality.perplexity import text_windows
from bipline.settings.sweep import ComparisonSettings
from bipline.stages.calibrate import DEFAULT_SAMPLES, samples_between
from bipline.stages.resolve import resolve_model, resolve_tasks, resolve_texts
from bipline.storage.digests import digest_json
from bipline.storage.documents import TEXT_SUFFIXES, read_documents
from bipline.storage.store import Handle
from bipline.values.combination import Combination
from bipline.values.comparison import ComparedCalibration, ComparedModel, Comparison, Row
from bipline.values.record import EvaluationRecord
from bipline.values.resolution import Resolution, ResolvedModel, ResolvedText


@dataclass(frozen=True)
class Inputs:
    """Models with evaluation texts and tasks, and calibration texts, by the names of the grid."""

    models: dict[str, Resolution]
    calibrations: dict[str, ResolvedText]


def named(what: str, sources: Sequence[str]) -> dict[str, str]:
    """Sources by their last name, or by the whole of it where two are called the same.

    Raises InvalidInput for a source that is given twice, and where there is none.
    """
    if not sources:
        raise InvalidInput(f"{what}: give at least one")
    if len(set(sources)) < len(sources):
        raise InvalidInput(f"{what}: one is given twice")
    short = [short_name(source) for source in sources]
    return {
        source if short.count(name) > 1 else name: source
        for source, name in zip(sources, short, strict=True)
    }


def short_name(source: str) -> str:
    """What a source is called: the last part of where it lies, or its repository."""
    if source.startswith(HUB):
        return source.removeprefix(HUB)
    name = Path(source).name
    return Path(name).stem if name.endswith(TEXT_SUFFIXES) else name or source


def resolve_inputs(
    models: dict[str, str],
    calibrations: dict[str, str],
    texts: dict[str, str],
    downloads: Path,
    tasks: Mapping[str, str] | None = None,
    num_fewshot: int = 0,
) -> Inputs:
    """Resolve all of it; what is remote is downloaded. Raises as :mod:`bipline.stages.resolve`."""
    if not texts:
        raise InvalidInput("no evaluation text: give --text NAME=FILE")
    evaluation = resolve_texts(texts, downloads)
    asked = resolve_tasks(tasks or {}, downloads, num_fewshot)
    return Inputs(
        {
            name: Resolution(model=resolve_model(source, downloads), texts=evaluation, tasks=asked)
            for name, source in models.items()
        },
        resolve_texts(calibrations, downloads),
    )


def mixtures_of(inputs: Inputs) -> list[str]:
    """The models whose FFNs have experts, by their names."""
    opened = {name: open_checkpoint(each.model.location) for name, each in inputs.models.items()}
    return [name for name, checkpoint in opened.items() if checkpoint.shape.num_experts]


def with_samples(
    settings: ComparisonSettings, inputs: Inputs, rows: Sequence[Combination]
) -> ComparisonSettings:
    """The same with its number of windows set: as many as the neediest row needs, for all alike."""
    section, compensations = settings.calibrate, compensations_of(rows)
    if section.samples is not None:
        return settings
    each = [
        samples_between(open_checkpoint(given.model.location), section, compensations)
        for given in inputs.models.values()
    ]
    samples, fewest = map(max, zip(*each, strict=True))
    if fewest > DEFAULT_SAMPLES:
        note(f"samples {fewest} for every row: compensation needs more than {DEFAULT_SAMPLES}")
    counts = {"samples": samples, "fewest_samples": fewest if fewest < samples else None}
    return settings.model_copy(update={"calibrate": section.model_copy(update=counts)})


def comparison_of(
    models: Mapping[str, tuple[ResolvedModel, EvaluationRecord]],
    calibrations: Mapping[str, tuple[Sequence[ResolvedText], Handle]],
    rows: Iterable[Row],
) -> Comparison:
    """What a comparison tells: models with their dense records, calibrations and rows.

    A calibration is its texts and a set of windows drawn from them. Of a mix it tells the sources
    together, and a digest over them.
    """
    compared = {
        name: ComparedModel(
            source=model.source,
            revision=model.revision,
            licence=model.licence,
            record=record.without_items(),
        )
        for name, (model, record) in models.items()
    }
    drawn = {}
    for name, (texts, windows) in calibrations.items():
        digests = [text.sha256 for text in texts]
        drawn[name] = ComparedCalibration(
            source=" + ".join(text.source for text in texts),
            sha256=digests[0] if len(digests) == 1 else digest_json(sorted(digests)),
            samples=int(windows.info["samples"]),
            seqlen=int(windows.info["seqlen"]),
        )
    return Comparison(models=compared, calibrations=drawn, rows=tuple(rows))


def check_windows(
    checkpoint: Checkpoint,
    texts: Sequence[ResolvedText],
    settings: ComparisonSettings,
    tried: Sequence[Combination],
    drawn: Sequence[torch.Tensor],
) -> int:
    """Hold all windows of a model against it; the memory in bytes that one process needs at most.

    ``tried`` are the combinations that are not refused yet.
    Raises InvalidInput for windows that the model cannot take.
    """
    protocol, compute = settings.evaluate.protocol, settings.compute
    device = choose_device(compute.device)
    loop = BlockLoop(checkpoint, torch_dtype(protocol.dtype), device, compute.micro_batch)
    tokenizer, needs = tokenizer_of(checkpoint.folder), []
    for text in texts:
        documents = read_documents(Path(text.location))
        windows = text_windows(
            tokenizer, documents, protocol.seqlen, protocol.bos, stride=protocol.stride
        )
        loop.check(windows)
        needs.append(memory_need(loop, windows, logits=True).total)
    backwards = any(needs_of(each.criterion.name).backward for each in tried)
    for windows in drawn:
        loop.check(windows)
        # Beside the pass over the same windows.
        corrects = max(
            (needed_bytes(checkpoint, line_of(each).compensate, *windows.shape) for each in tried),
            default=0,
        )
        forward = memory_need(loop, windows, logits=False).total
        backward = gradient_memory(loop, windows).total if backwards else 0
        needs.append(max(forward + corrects, backward))
    return max(needs)
