"""The job behind ``bipline evaluate``: a model under one protocol, without ZenML."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from bipline.base.errors import InvalidInput
from bipline.model.devices import choose_device
from bipline.model.opening import open_checkpoint
from bipline.quality.evaluate import Running, evaluate
from bipline.settings.protocol import Protocol
from bipline.values.record import EvaluationRecord


@dataclass(frozen=True)
class EvaluateRequest:
    """Everything ``bipline evaluate`` was told (see its ``--help``)."""

    model: str
    baseline: str | None
    texts: tuple[str, ...]
    tasks: str
    task_data: Path | None
    seqlen: int
    bos: str
    dtype: str
    batch_size: int
    speed: bool
    device: str
    max_memory: int | None


def evaluate_job(request: EvaluateRequest) -> dict[str, EvaluationRecord]:
    """Records by name: ``model``, and ``baseline`` under the same protocol where asked."""
    protocol = _protocol(request)
    texts = dict(_named_file(text) for text in request.texts)
    if len(texts) < len(request.texts):
        raise InvalidInput("--text: two texts have the same name; name them apart")
    names = [name.strip() for name in request.tasks.split(",") if name.strip()]
    if names and request.task_data is None:
        raise InvalidInput("--tasks needs --task-data, the folder that holds NAME.jsonl")
    tasks = {name: Path(request.task_data or ".") / f"{name}.jsonl" for name in names}
    running = Running(choose_device(request.device), request.max_memory)
    if request.baseline:
        open_checkpoint(request.baseline)  # an unusable one must not be found after the long part
    records = {"model": evaluate(request.model, protocol, texts, tasks, running)}
    if request.baseline:
        records["baseline"] = evaluate(request.baseline, protocol, texts, tasks, running)
    return records


def _protocol(request: EvaluateRequest) -> Protocol:
    try:
        return Protocol.model_validate(
            {
                "seqlen": request.seqlen,
                "bos": request.bos,
                "dtype": request.dtype,
                "batch_size": request.batch_size,
                "speed": request.speed,
            }
        )
    except ValidationError as error:
        problem = error.errors()[0]
        raise InvalidInput(
            f"--{problem['loc'][0]} {problem['input']!r}: {problem['msg'].lower()}"
        ) from None


def _named_file(text: str) -> tuple[str, Path]:
    name, equals, file = text.partition("=")
    if not (name and equals and file):
        raise InvalidInput(f"--text {text!r}: write NAME=FILE")
    return name, Path(file)
