"""Evidence: what a package tells of itself, read so that a gate can judge by it.

Nothing here raises for what a package lacks: it is told as a problem, and a gate that needs it
cannot tell.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from typing import Any, TypeVar

from bipline.base.errors import BiplineError, InvalidInput, Refused
from bipline.storage.digests import digest_bytes, digest_json
from bipline.storage.manifest import MANIFEST_NAME, Manifest, differs, parse_manifest
from bipline.storage.strict_json import parse_object
from bipline.values.export import ExportRecord
from bipline.values.items import EvaluationItems
from bipline.values.reading import typed
from bipline.values.record import EvaluationRecord
from bipline.values.resolution import Resolution

EVALUATION, RESOLUTION, ITEMS = "evaluation.json", "resolution.json", "items.json"
# What a gate reads of a package; the weights are not among it.
DOCUMENTS = (EVALUATION, RESOLUTION, ITEMS)
Value = TypeVar("Value")


@dataclass(frozen=True)
class Signature:
    """A signature of a package that was looked at: whether it holds, and whose it is."""

    holds: bool
    key: str


@dataclass(frozen=True)
class Measured:
    """One model: its record, the items behind it where they are at hand, and its formats' own."""

    record: EvaluationRecord
    items: EvaluationItems | None = None
    exports: Mapping[str, ExportRecord] = field(default_factory=dict)


@dataclass(frozen=True)
class Evidence:
    """What is known of one package.

    ``models`` are ``dense`` and ``packaged``, each None where it cannot be read; ``problems`` say
    why, by what they are about. ``evaluated_at`` and ``signature`` are None where nobody knows.
    """

    package_digest: str
    models: Mapping[str, Measured]
    formats: tuple[str, ...] | None = None
    licence: str | None = None
    evaluated_at: datetime | None = None
    signature: Signature | None = None
    problems: Mapping[str, str] = field(default_factory=dict)

    @property
    def record_digests(self) -> dict[str, str]:
        """Digests of the records by model, of those that are JSON."""
        found = {}
        for name, each in self.models.items():
            with suppress(ValueError):  # NaN, which no file holds
                found[name] = digest_json(each.record.model_dump(mode="json"))
        return found


def read_evidence(read: Callable[[str], bytes], where: str, digest: str, **known: Any) -> Evidence:
    """The evidence in a package whose files ``read`` gives, of which only documents are read.

    ``known`` are fields that no package holds: ``evaluated_at`` and ``signature``. Raises Refused
    where the manifest is not the one of this digest, or a document not the one it lists.
    """
    manifest = parse_manifest(read(MANIFEST_NAME), f"{where}/{MANIFEST_NAME}")
    if manifest.digest != digest:
        raise Refused(f"{where}: holds package {manifest.digest[:12]}, not {digest[:12]}")
    values: dict[str, Any] = {}
    for name in DOCUMENTS:
        if name in manifest.files:
            content = read(name)
            if digest_bytes(content) != manifest.files[name].sha256:
                raise differs(where, name)
            with suppress(InvalidInput):  # then it is missing, and the gate says so
                values[name] = parse_object(content, name, "document")
    return replace(evidence_of(manifest, values), **known)


def evidence_of(manifest: Manifest, documents: Mapping[str, Any]) -> Evidence:
    """The evidence in a package's documents, as JSON values by name, and its manifest."""
    problems: dict[str, str] = {}

    def told(about: str, read: Callable[[], Value]) -> Value | None:
        try:
            return read()
        except (BiplineError, KeyError, TypeError, ValueError, AttributeError) as error:
            missing = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            problems[about] = " ".join(missing.split())
            return None

    models: dict[str, Measured] = {}
    for model in ("dense", "packaged"):
        if found := told(model, partial(measured_of, documents, model)):
            models[model] = found
    exports = told("formats measured", lambda: _exports(manifest, documents, models["packaged"]))
    if exports:
        models["packaged"] = replace(models["packaged"], exports=exports)
    resolution = told("resolution", lambda: _resolution(documents))
    told("package", lambda: _compare(manifest, documents, models, resolution))
    return Evidence(
        package_digest=manifest.digest,
        models=models,
        formats=told("formats", lambda: _formats(manifest)),
        licence=resolution.model.licence if resolution else None,
        problems=problems,
    )


def measured_of(documents: Mapping[str, Any], model: str) -> Measured:
    """The record of ``dense`` or ``packaged`` in a package's documents, and its items.

    Raises KeyError and its like for documents that are none of a package.
    """
    evaluation = documents[EVALUATION]
    name = evaluation["packaged"] if model == "packaged" else model
    record = record_of(evaluation["records"][name], name)
    items = (documents.get(ITEMS) or {}).get(name)
    if items is None:
        return Measured(record)
    return Measured(record, typed(items, EvaluationItems, ITEMS, "list of items"))


def record_of(value: dict[str, Any], name: str) -> EvaluationRecord:
    """A record as files hold it: its protocol bears its own digest.

    Raises InvalidInput for another value, Refused for a digest that is not the protocol's.
    """
    protocol = dict(value["protocol"])
    claimed = protocol.pop("digest")
    record = typed({**value, "protocol": protocol}, EvaluationRecord, EVALUATION, "record")
    if record.protocol_digest != claimed:
        raise Refused(f"{EVALUATION}: the protocol of {name} is not the one of its digest")
    return record


def _resolution(documents: Mapping[str, Any]) -> Resolution:
    return typed(documents[RESOLUTION], Resolution, RESOLUTION, "resolution")


def _formats(manifest: Manifest) -> tuple[str, ...]:
    return tuple(map(str, manifest.info["formats"]))


def _exports(
    manifest: Manifest, documents: Mapping[str, Any], packaged: Measured
) -> dict[str, ExportRecord]:
    """What engines said of each format, where it is about these tensors, texts and files.

    Raises Refused where one is not, and KeyError and its like for documents of no package.
    """
    found = {}
    for name, value in (documents[EVALUATION].get("formats") or {}).items():
        record = typed(value, ExportRecord, EVALUATION, f"record of {name}")
        if record.format != name or name not in _formats(manifest):
            raise Refused(f"the record of {name} is of {record.format}, or the package has none")
        if record.origin.tensor_digest != manifest.info["tensor_digest"]:
            raise Refused(f"the record of {name} is about other tensors than the package's")
        texts = packaged.record.protocol.get("texts") or {}
        for text, measured in record.perplexity.items():
            if measured.sha256 != texts.get(text):
                raise Refused(f"the record of {name} is of another text {text}")
        found[name] = record
    return found


def _compare(
    manifest: Manifest,
    documents: Mapping[str, Any],
    models: Mapping[str, Measured],
    resolution: Resolution | None,
) -> None:
    """Raise Refused unless records, resolution and manifest are about the same two models."""
    if resolution is None or len(models) < 2:
        raise Refused("a record or the resolution cannot be read")
    packaged, dense, info = models["packaged"].record, models["dense"].record, manifest.info
    pairs = {
        "what is packaged": (documents[EVALUATION]["packaged"], info["packaged"]),
        "tensors": (packaged.tensor_digest, info["tensor_digest"]),
        "parameters": (packaged.parameters, info["parameters"]),
        "the dense model": (dense.tensor_digest, resolution.model.tensor_digest),
    }
    for what, (one, other) in pairs.items():
        if one != other:
            raise Refused(f"{what}: the record says {one!s:.12}, the package {other!s:.12}")
