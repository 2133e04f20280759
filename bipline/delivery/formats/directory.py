"""A model in one format: a directory with its file, what its engine said of it, and a README.

Nothing in it depends on where the model lay or when it was written.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bipline.base.code import commit, version
from bipline.base.progress import heading, note
from bipline.delivery.card import escaped, perplexity_table, plain_table
from bipline.delivery.formats.interface import Format, Subject
from bipline.delivery.origin import model_origin
from bipline.model.checkpoint import Checkpoint
from bipline.settings.base import Settings
from bipline.storage.directory import DirectoryWriter, atomic_directory, write_text
from bipline.storage.places import is_elsewhere
from bipline.storage.strict_json import parse_object
from bipline.values.export import ExportRecord, Origin
from bipline.values.plan import PLAN_NAME, PruningPlan
from bipline.values.plan import Layout as PlanLayout
from bipline.values.reading import typed
from bipline.values.resolution import ResolvedModel

KIND = "export"
RECORD_NAME = "export.json"


def export_to(out: Path, subject: Subject, format_: Format, settings: Settings) -> ExportRecord:
    """Write a model into the directory ``out``, which appears once the engine has verified it.

    Raises InvalidInput before any work for what the format cannot hold, Refused where the engine
    says otherwise than the model.
    """
    heading("check")
    layout = format_.check(subject.checkpoint, subject.texts, settings)
    for line in layout.notes:
        note(line)
    with atomic_directory(out, KIND) as writer:
        record = write_format(writer, "", subject, format_, settings)
        if record is None:
            raise RuntimeError(f"{format_.name} has no engine of its own")
        writer.info = {
            "tensor_digest": record.origin.tensor_digest,
            "format": record.format,
            "type": record.type,
            "architecture": record.architecture,
            "parameters": record.parameters,
        }
    return record


def write_format(
    writer: DirectoryWriter, folder: str, subject: Subject, format_: Format, settings: Any
) -> ExportRecord | None:
    """Write a model in a format into a folder of an open directory, and verify it there.

    With what its engine said of it, which lies beside it; None where that is transformers, of
    which the file's own account says all. Raises as the format's own methods do.
    """
    checkpoint = subject.checkpoint
    layout = format_.check(checkpoint, subject.texts, settings)
    heading(f"write {format_.name}")
    file = format_.write(subject, writer, folder, settings)
    _ = checkpoint.tensor_digest  # refuses weights that changed since they were resolved
    heading(f"verify {format_.name}")
    verification = format_.verify(file, subject, settings)
    if verification is None:
        return None
    record = ExportRecord(
        format=format_.name,
        type=str(settings.model_dump().get("type", "")),
        architecture=layout.architecture,
        origin=subject.origin,
        parameters=checkpoint.decoder_parameters,
        file_bytes=sum(each.stat().st_size for each in file.parent.glob(f"{file.name}*")),
        notes=layout.notes,
        check=verification.check,
        perplexity=verification.perplexity,
    )
    _write_documents(file.parent, record, format_.how_to_load(file.name, _layout(checkpoint)))
    return record


def _layout(checkpoint: Checkpoint) -> PlanLayout:
    return "per-layer" if checkpoint.shape.per_layer else "uniform"


def origin_of(model: ResolvedModel, checkpoint: Checkpoint) -> Origin:
    """Where the tensors came from, by digests; a local model by the name of its folder."""
    plan, told = _plan_of(checkpoint), model_origin(checkpoint.folder)
    named = is_elsewhere(model.source)
    return Origin(
        name=model.source if named else Path(model.source).absolute().name,
        revision=model.revision,
        licence=model.licence,
        tensor_digest=model.tensor_digest or checkpoint.tensor_digest,
        plan_digest=plan and plan.digest,
        base_tensor_digest=plan and plan.tensor_digest,
        base_model=told and told.base_model,
        base_revision=told and told.base_revision,
        version=version(),
        git_commit=commit(),
    )


def _plan_of(checkpoint: Checkpoint) -> PruningPlan | None:
    """The plan that lies beside the weights of a pruned model."""
    if PLAN_NAME not in checkpoint.folder.names():
        return None
    where, name = f"{checkpoint.location}/{PLAN_NAME}", "pruning plan"
    value = parse_object(checkpoint.folder.read(PLAN_NAME), where, name, "")
    return typed(value, PruningPlan, where, name)


def _write_documents(folder: Path, record: ExportRecord, how_to_load: str) -> None:
    write_text(folder / RECORD_NAME, record.model_dump_json(indent=1) + "\n")
    write_text(folder / "README.md", readme(record, how_to_load))


def readme(record: ExportRecord, how_to_load: str) -> str:
    """What the directory holds, how it is loaded, where it came from and what was verified."""
    check = record.check
    lines = [
        f"# {escaped(record.origin.name)} as {record.format}, {record.type}",
        f"Architecture `{record.architecture}`, {record.parameters:,} parameters, "
        f"{record.file_bytes / 1e6:,.2f} MB.",
        "## How to load it",
        how_to_load.strip(),
        "## Where it came from",
        plain_table([(name.replace("_", " "), value) for name, value in _origin(record)]),
        "## What was verified",
        f"Opened by {check.engine} in a process of its own, beside the model in float32. Token ids "
        f"of a test page: the same ({check.page_tokens} tokens; with special tokens: "
        f"{'the same' if check.special_tokens_same else 'they differ'}). Log-probabilities differ "
        f"by at most {check.largest_difference:.1e} nats in {check.compared:,} places, "
        f"divergence {check.divergence:.1e} nats; from the model with the weights that the file "
        f"has {check.divergence_as_stored:.1e}.",
        *(f"* {escaped(line)}" for line in record.notes),
    ]
    if record.perplexity:
        lines += [perplexity_table(record)]
    return "\n\n".join(lines) + "\n"


def _origin(record: ExportRecord) -> list[tuple[str, Any]]:
    return list(record.origin.model_dump(exclude_none=True).items())
