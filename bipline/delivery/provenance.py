"""Provenance of a package: an in-toto statement with SLSA's provenance predicate, version 1.

Subject is the package by its manifest and its tensors; dependencies are the files of the base
model, the texts and the tasks by sha256. What is written is read back by in-toto's own definitions,
which know every field and refuse others. It says what a run tells of itself: whose word that is, a
signature of the lineage tells.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bipline.base.errors import Refused
from bipline.base.extras import require
from bipline.delivery.contents import portable_config, portable_source
from bipline.storage.digests import digest_file
from bipline.storage.manifest import MANIFEST_NAME, Manifest
from bipline.storage.strict_json import read_json
from bipline.values.lineage import RunLineage
from bipline.values.resolution import Resolution

NAME = "provenance.json"
EXTRA = "pipeline"
STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://slsa.dev/provenance/v1"
# Names of ours, not addresses: nobody answers there.
BUILD_TYPE = "urn:bipline:compress:v1"
BUILDER = "urn:bipline"
TENSORS = "tensors"


def statement(
    package: Path,
    manifest: Manifest,
    resolution: Resolution,
    config: Mapping[str, Any],
    run: RunLineage,
) -> str:
    """The text of the statement about a package that a run made from what it resolved.

    Raises Refused where in-toto's definitions do not take it.
    """
    value = {
        "_type": STATEMENT,
        "subject": _subject(package, manifest),
        "predicateType": PREDICATE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {"configuration": portable_config(config)},
                "internalParameters": {
                    "stages": {name: each.key for name, each in run.stages.items() if each.key}
                },
                "resolvedDependencies": list(dependencies(resolution)),
            },
            "runDetails": {
                "builder": {"id": BUILDER, "version": run.code},
                "metadata": {
                    "invocationId": run.run_id,
                    "startedOn": _time(run.started),
                    "finishedOn": _time(run.ended),
                },
            },
        },
    }
    _check_definitions(value, NAME)
    return json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n"


def check_statement(package: Path, manifest: Manifest, path: Path) -> None:
    """Raise Refused unless a file is a provenance of the package with this manifest."""
    value = read_json(path, "provenance", "")
    _check_definitions(value, str(path))
    if value.get("_type") != STATEMENT or value.get("predicateType") != PREDICATE:
        raise Refused(f"{path}: no in-toto statement with a SLSA provenance of version 1")
    if value["subject"] != _subject(package, manifest):
        raise Refused(f"{path}: is about another package")


def _subject(package: Path, manifest: Manifest) -> list[dict[str, Any]]:
    """The package by its manifest's bytes, and the model by its tensors."""
    return [
        {"name": MANIFEST_NAME, "digest": {"sha256": digest_file(package / MANIFEST_NAME)}},
        {"name": TENSORS, "digest": {"sha256": str(manifest.info["tensor_digest"])}},
    ]


def dependencies(resolution: Resolution) -> Iterator[dict[str, Any]]:
    """Tensors and files of the base model, texts and tasks, each with its sha256."""
    model = resolution.model
    source = {"source": portable_source(model.source), "revision": model.revision or ""}
    yield _dependency(f"model/{TENSORS}", str(model.tensor_digest), **source)
    for name, sha256 in sorted(model.files.items()):
        yield _dependency(f"model/{name}", sha256)
    for name, text in sorted(resolution.texts.items()):
        told = {"source": portable_source(text.source), "revision": text.revision or ""}
        yield _dependency(f"text/{name}", text.sha256, **told)
    for name, task in sorted(resolution.tasks.items()):
        yield _dependency(f"task/{name}", task.sha256, source=portable_source(task.source))


def _dependency(name: str, sha256: str, **annotations: str) -> dict[str, Any]:
    told = {key: text for key, text in annotations.items() if text}
    return {
        "name": name,
        "digest": {"sha256": sha256},
        **({"annotations": told} if told else {}),
    }


def _time(moment: Any) -> str:
    return str(moment.isoformat(timespec="seconds")).replace("+00:00", "Z")


def _check_definitions(value: Mapping[str, Any], where: str) -> None:
    """Raise Refused for a field that in-toto or SLSA do not define, or one that is missing."""
    wrapper = require("in_toto_attestation.v1.statement", EXTRA)
    raw = require("in_toto_attestation.v1.statement_pb2", EXTRA)
    slsa = require("in_toto_attestation.predicates.provenance.v1.provenance_pb2", EXTRA)
    parsing = require("google.protobuf.json_format", EXTRA)
    try:
        read = parsing.ParseDict(dict(value), raw.Statement())
        wrapper.Statement.copy_from_pb(read).validate()
        predicate = parsing.ParseDict(value["predicate"], slsa.Provenance())
    except (parsing.ParseError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise Refused(f"{where}: not an in-toto statement of provenance: {reason}") from None
    definition, details = predicate.build_definition, predicate.run_details
    if not (definition.build_type and definition.external_parameters and details.builder.id):
        raise Refused(f"{where}: lacks what SLSA requires: build type, parameters or builder")
