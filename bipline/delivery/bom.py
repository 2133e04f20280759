"""The ML-BOM of a package: CycloneDX 1.6 by cyclonedx-python-lib, held to its strict schema.

The model with its files, licence and figures; the model that it was pruned from as its ancestor;
the texts and tasks as data. The library knows no model card, so that part is added as JSON; the
schema that the whole is held to knows it. No time is in it: the same package has the same BOM.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from bipline.base.code import version
from bipline.base.errors import Refused
from bipline.base.extras import require
from bipline.delivery.card_metadata import METRICS
from bipline.delivery.contents import PackageContents, portable_source
from bipline.storage.digests import digest_json
from bipline.storage.manifest import FileEntry, Manifest
from bipline.storage.strict_json import parse_object
from bipline.values.figures import Figure, figures_of
from bipline.values.record import EvaluationRecord

NAME = "bom.json"
EXTRA = "pipeline"
MODEL, BASE = "model", "base"
# How many standard errors an interval of 95 % reaches to either side.
REACH = 1.96


def bom_text(contents: PackageContents, model: Manifest, files: Mapping[str, FileEntry]) -> str:
    """The text of the BOM of a package with these files, whose model has this manifest.

    Raises Refused where the schema does not take it.
    """
    value = bom_value(_subject(contents, files), list(_data(contents)))
    value["metadata"]["component"]["modelCard"] = _card(contents, model)
    return checked_text(value, NAME)


def check_bom(package: Path, manifest: Manifest) -> None:
    """Raise Refused unless the BOM of a package fits its schema and is about these tensors."""
    path = package / NAME
    content = path.read_bytes()
    value = parse_object(content, str(path), "BOM", "")
    _check_schema(content.decode(), str(path))
    about = value.get("metadata", {}).get("component", {})
    if _hash(str(manifest.info["tensor_digest"])) not in about.get("hashes", []):
        raise Refused(f"{path}: is about another model")


def _hash(sha256: str) -> dict[str, str]:
    return {"alg": "SHA-256", "content": sha256}


@cache
def _validator() -> Any:
    schema = require("cyclonedx.schema", EXTRA)
    strict = require("cyclonedx.validation.json", EXTRA).JsonStrictValidator
    return strict(schema.SchemaVersion.V1_6)


def _check_schema(text: str, where: str) -> None:
    error = _validator().validate_str(text)
    if error is not None:
        reason = " ".join(str(error.data.message).split())
        raise Refused(f"{where}: not a CycloneDX 1.6 BOM: {reason[:200]}")


def bom_value(subject: Any, parts: list[Any]) -> dict[str, Any]:
    """A BOM without a time of one component, which depends on its parts, as the library writes it.

    It has no number yet: :func:`checked_text` gives it one.
    """
    bom = require("cyclonedx.model.bom", EXTRA)
    schema = require("cyclonedx.schema", EXTRA)
    writing = require("cyclonedx.output", EXTRA)
    own = component("application", "bipline", version=version())
    tools = require("cyclonedx.model.tool", EXTRA).ToolRepository(components=[own])
    made = bom.Bom(metadata=bom.BomMetaData(component=subject, tools=tools), components=parts)
    made.register_dependency(subject, parts)
    written = schema.OutputFormat.JSON, schema.SchemaVersion.V1_6
    value: dict[str, Any] = json.loads(writing.make_outputter(made, *written).output_as_string())
    value["metadata"].pop("timestamp")
    return value


def checked_text(value: dict[str, Any], where: str) -> str:
    """The text of a BOM, numbered by what it says: the same content has the same bytes.

    Raises Refused where the schema does not take it; ``where`` names it.
    """
    numbered = {**value, "serialNumber": ""}
    numbered["serialNumber"] = uuid5(NAMESPACE_URL, digest_json(numbered)).urn
    text = json.dumps(numbered, indent=1, sort_keys=True, allow_nan=False) + "\n"
    _check_schema(text, where)
    return text


def licences(text: str | None) -> list[Any]:
    """A licence as it is named: an identifier or an expression where it is one, else a name."""
    if not text:
        return []
    factory = require("cyclonedx.contrib.license.factories", EXTRA).LicenseFactory()
    return [factory.make_from_string(text)]


def component(kind: str, name: str, sha256: str | None = None, **fields: Any) -> Any:
    """A component of a BOM; of type ``kind``, as CycloneDX calls it."""
    parts = require("cyclonedx.model.component", EXTRA)
    basics = require("cyclonedx.model", EXTRA)
    hashes = [basics.HashType(alg=basics.HashAlgorithm.SHA_256, content=sha256)] if sha256 else []
    return parts.Component(name=name, type=parts.ComponentType(kind), hashes=hashes, **fields)


def _subject(contents: PackageContents, files: Mapping[str, FileEntry]) -> Any:
    """The packaged model: its tensors, its files, and what it was made from."""
    pedigree = require("cyclonedx.model.component", EXTRA).Pedigree(
        ancestors=[_base(contents)],
        notes=f"structured pruning by the plan {contents.plan.digest}",
    )
    return component(
        "machine-learning-model",
        f"{contents.source_name} pruned",
        contents.records[contents.packaged].tensor_digest,
        bom_ref=MODEL,
        licenses=licences(contents.resolution.model.licence),
        pedigree=pedigree,
        components=_files(MODEL, {name: entry.sha256 for name, entry in files.items()}),
    )


def _base(contents: PackageContents) -> Any:
    resolved = contents.resolution.model
    return component(
        "machine-learning-model",
        contents.source_name,
        resolved.tensor_digest,
        bom_ref=BASE,
        version=resolved.revision,
        licenses=licences(contents.resolution.model.licence),
        components=_files(BASE, resolved.files),
    )


def _files(whose: str, files: Mapping[str, str]) -> list[Any]:
    return [
        component("file", name, sha256, bom_ref=f"{whose}/{name}")
        for name, sha256 in sorted(files.items())
    ]


def _data(contents: PackageContents) -> Iterator[Any]:
    """What the run read beside the model."""
    for name, text in sorted(contents.resolution.texts.items()):
        told = {"version": text.revision, "description": portable_source(text.source)}
        yield component("data", name, text.sha256, bom_ref=f"text/{name}", **told)
    for name, task in sorted(contents.resolution.tasks.items()):
        told = {"description": portable_source(task.source)}
        yield component("data", name, task.sha256, bom_ref=f"task/{name}", **told)


def _card(contents: PackageContents, model: Manifest) -> dict[str, Any]:
    """The model card, which the library does not know."""
    plan, budget = contents.plan, contents.plan.budget
    told = {
        "plan_digest": plan.digest,
        "criterion": plan.criterion,
        "allocation": plan.allocation,
        "layout": plan.layout,
        "compensation": plan.compensation,
        "reached_blocks": repr(budget.reached_blocks),
        "reached_total": repr(budget.reached_total),
        "parameters": str(model.info["parameters"]),
        "protocol_digest": contents.records[contents.packaged].protocol_digest,
    }
    resolution = contents.resolution
    refs = [f"text/{name}" for name in sorted(resolution.texts)]
    refs += [f"task/{name}" for name in sorted(resolution.tasks)]
    return {
        "modelParameters": {
            "task": "text-generation",
            "architectureFamily": "transformer",
            "modelArchitecture": str(model.info["architecture"]),
            "datasets": [{"ref": each} for each in refs],
        },
        "quantitativeAnalysis": {
            "performanceMetrics": list(_figures(contents.records[contents.packaged]))
        },
        "considerations": {
            "technicalLimitations": [
                "Pruning can take rare abilities first, which an average hardly shows.",
                "Only what the figures name was measured.",
            ]
        },
        "properties": [
            {"name": f"bipline:{name}", "value": value} for name, value in sorted(told.items())
        ],
    }


def _figures(record: EvaluationRecord) -> Iterator[dict[str, Any]]:
    """Figures of quality with their intervals of 95 %, as texts, which the schema asks for."""
    for name, figure in figures_of(record).items():
        kind, _, subject = name.partition(".")
        if kind not in METRICS:
            continue
        told: dict[str, Any] = {"type": kind, "slice": subject, "value": repr(figure.value)}
        if interval := _interval(record, figure):
            ends = zip(("lowerBound", "upperBound"), map(repr, interval), strict=True)
            told["confidenceInterval"] = dict(ends)
        yield told


def _interval(record: EvaluationRecord, figure: Figure) -> tuple[float, float] | None:
    """The 95 % interval of a figure: of a perplexity the one that the report shows."""
    kind, _, subject = figure.name.partition(".")
    if kind == "perplexity":
        return record.perplexity[subject].interval
    if figure.error is None:
        return None
    reach = REACH * figure.error
    return figure.value - reach, figure.value + reach
