"""Export: a finished model becomes a package that explains itself.

A package is a directory: one folder per format, the model card, the report, and as JSON the
plan, the records and the resolution. It holds no timestamp and no local path, so the same
inputs give the same bytes. Every format is loaded again and compared before it counts.
"""

from __future__ import annotations

import json
from dataclasses import replace
from fnmatch import filter as matching
from pathlib import Path
from typing import Any

from bipline.base.code import commit, version
from bipline.base.errors import Refused
from bipline.delivery import bom
from bipline.delivery.card import render_card
from bipline.delivery.contents import (
    PackageContents,
    check_contents,
    portable_config,
    portable_resolution,
)
from bipline.delivery.evidence import RESOLUTION
from bipline.delivery.formats.directory import write_format
from bipline.delivery.formats.interface import Subject
from bipline.delivery.formats.registry import format_of
from bipline.delivery.origin import named_config
from bipline.delivery.report import render_report
from bipline.model.checkpoint import Checkpoint
from bipline.model.opening import PICKLED, open_checkpoint, read_config
from bipline.model.per_layer.shipping import is_own_code
from bipline.storage.directory import DirectoryWriter, write_text
from bipline.storage.manifest import Manifest, read_manifest, relative_files
from bipline.values.export import ExportRecord, Origin
from bipline.values.plan import PLAN_NAME

__all__ = ["KIND", "PackageContents", "write_package"]

KIND = "package"
SCHEMA_VERSION = 1
# What single windows and rows gave, by model.
ITEMS_NAME = "items.json"
# What the run was asked for, without paths.
CONFIGURATION_NAME = "configuration.json"
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


def write_package(contents: PackageContents, writer: DirectoryWriter) -> None:
    """Write a package into an open directory and declare in ``writer.info`` what it holds.

    Raises Refused when the contents are not about one model, when a byte of the model is not
    the one its manifest lists, when the model is an adapter, or when a format that was loaded
    again differs; InvalidInput for an unknown format or a missing record.
    """
    for name in contents.formats:
        format_of(name)
    manifest = read_manifest(contents.model)
    _refuse_unfit(contents.model)
    checkpoint = open_checkpoint(contents.model)
    check_contents(contents, checkpoint.tensor_digest)
    contents = replace(contents, exports=_write_formats(contents, checkpoint, writer))
    _write_documents(contents, manifest, writer)
    writer.info = _declared(contents, manifest, checkpoint.tensor_digest)


def _write_formats(
    contents: PackageContents, checkpoint: Checkpoint, writer: DirectoryWriter
) -> dict[str, ExportRecord]:
    """Write each format into a folder of its name, with what engines said of theirs."""
    measured = contents.records[contents.packaged].perplexity
    found = contents.resolution.texts
    texts = {name: Path(found[name].location) for name in measured if name in found}
    subject = Subject(
        checkpoint, _origin(contents, checkpoint), texts, contents.dense, named_config(contents)
    )
    exports = {}
    for name in dict.fromkeys(contents.formats):
        settings = contents.format_settings.get(name)
        record = write_format(writer, name, subject, format_of(name), settings)
        if record is not None:
            exports[name] = record
    return exports


def _origin(contents: PackageContents, checkpoint: Checkpoint) -> Origin:
    """Where the packaged model came from: the dense model under its name, and the plan."""
    dense = contents.resolution.model
    return Origin(
        name=f"{contents.source_name} pruned",
        licence=dense.licence,
        tensor_digest=checkpoint.tensor_digest,
        plan_digest=contents.plan.digest,
        base_tensor_digest=contents.plan.tensor_digest,
        base_model=contents.source_name,
        base_revision=dense.revision,
        version=version(),
        git_commit=commit(),
    )


def _refuse_unfit(model: Path) -> None:
    """Refuse what is not a whole model, or could run code where it is loaded.

    The code that is ours, to the byte, is what a per-layer model cannot be loaded without.
    """
    for name in ADAPTER_FILES:
        if (model / name).exists():
            raise Refused(f"{model}: {name} makes it an adapter of another model; merge it first")
    config, present = read_config(model), relative_files(model)
    for pattern in (*PICKLED, "*.py"):
        for name in matching(present, pattern):
            if not is_own_code(config, name, (model / name).read_bytes()):
                raise Refused(
                    f"{model / name}: can run code where it is loaded and is never packaged"
                )


def _write_documents(
    contents: PackageContents, manifest: Manifest, writer: DirectoryWriter
) -> None:
    documents = {
        bom.NAME: bom.bom_text(contents, manifest, writer.manifest().files),
        CONFIGURATION_NAME: _json(portable_config(contents.config)),
        PLAN_NAME: contents.plan.to_json(),
        "evaluation.json": _json(_evaluation(contents)),
        ITEMS_NAME: _json(_items(contents)),
        RESOLUTION: portable_resolution(contents.resolution).to_json(),
        "README.md": render_card(contents),
        "report.html": render_report(contents),
    }
    for name, text in documents.items():
        write_text(writer.path / name, text)


def _evaluation(contents: PackageContents) -> dict[str, Any]:
    recovery = contents.recovery
    formats = {name: each.model_dump(mode="json") for name, each in contents.exports.items()}
    return {
        "schema_version": SCHEMA_VERSION,
        "packaged": contents.packaged,
        "records": {model: record.to_json_value() for model, record in contents.measured.items()},
        "recovery": None if recovery is None else recovery.model_dump(mode="json"),
        **({"formats": formats} if formats else {}),
    }


def _items(contents: PackageContents) -> dict[str, Any]:
    return {
        model: record.items.model_dump(mode="json")
        for model, record in contents.measured.items()
        if record.items
    }


def _json(value: Any) -> str:
    try:
        return json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n"
    except ValueError:
        raise Refused("an evaluation record holds NaN or infinity; evaluate again") from None


def _declared(contents: PackageContents, manifest: Manifest, digest: str) -> dict[str, Any]:
    return {
        "tensor_digest": digest,
        "architecture": manifest.info["architecture"],
        "parameters": manifest.info["parameters"],
        "formats": list(dict.fromkeys(contents.formats)),
        "packaged": contents.packaged,
        "ratio": contents.plan.budget.model_dump(mode="json"),
        "perplexity": {
            model: {text: value.value for text, value in record.perplexity.items()}
            for model, record in contents.records.items()
        },
    }
