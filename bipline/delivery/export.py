"""Export: a finished model becomes a package that explains itself.

A package is a directory: one folder per format, the model card, the report, and as JSON the
plan, the records and the resolution. It holds no timestamp and no local path, so the same
inputs give the same bytes. Every format is loaded again and compared before it counts.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from fnmatch import filter as matching
from pathlib import Path
from typing import Any

from bipline.base.errors import InvalidInput, Refused
from bipline.base.progress import track
from bipline.compression.prune import PLAN_NAME
from bipline.delivery import bom
from bipline.delivery.card import render_card
from bipline.delivery.contents import (
    PackageContents,
    check_contents,
    portable,
    portable_resolution,
)
from bipline.delivery.origin import named_config
from bipline.delivery.report import render_report
from bipline.delivery.verification import verify_hf
from bipline.model.opening import PICKLED, open_checkpoint, read_config
from bipline.model.per_layer.shipping import code_files
from bipline.storage.digests import digest_file
from bipline.storage.directory import DirectoryWriter, copy_listed, write_text
from bipline.storage.manifest import (
    MANIFEST_NAME,
    FileEntry,
    Manifest,
    compare_names,
    read_manifest,
    relative_files,
)
from bipline.values.resolution import CONFIG

__all__ = ["KIND", "PackageContents", "verify_hf", "write_package"]

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
    if unknown := sorted(set(contents.formats) - set(FORMATS)):
        raise InvalidInput(f"format {unknown[0]!r} is unknown; known: {', '.join(FORMATS)}")
    manifest = read_manifest(contents.model)
    _refuse_unfit(contents.model)
    tensor_digest = open_checkpoint(contents.model).tensor_digest
    check_contents(contents, tensor_digest)
    for name in dict.fromkeys(contents.formats):
        FORMATS[name](contents, manifest, writer)
    _write_documents(contents, manifest, writer)
    writer.info = _declared(contents, manifest, tensor_digest)


def _write_hf(contents: PackageContents, manifest: Manifest, writer: DirectoryWriter) -> None:
    """The model's own files, byte for byte but for its config, which names the base model now.

    With a manifest of them beside: the folder alone verifies too.
    """
    present = relative_files(contents.model)
    compare_names(str(contents.model), present, manifest)
    for name in track(present, "copy hf"):
        copy_listed(contents.model / name, writer, f"hf/{name}", manifest.files[name])
    config = writer.path / "hf" / CONFIG
    write_text(config, named_config(contents))
    entry = FileEntry(size=config.stat().st_size, sha256=digest_file(config))
    writer.add_hashed(f"hf/{CONFIG}", entry.size, entry.sha256)
    named = manifest.model_copy(update={"files": {**manifest.files, CONFIG: entry}})
    write_text(writer.path / "hf" / MANIFEST_NAME, named.to_json())
    verify_hf(writer.path / "hf", contents.model, contents.dense)


FORMATS: dict[str, Callable[[PackageContents, Manifest, DirectoryWriter], None]] = {
    "hf": _write_hf,
}


def _refuse_unfit(model: Path) -> None:
    """Refuse what is not a whole model, or could run code where it is loaded.

    The code that is ours, to the byte, is what a per-layer model cannot be loaded without.
    """
    for name in ADAPTER_FILES:
        if (model / name).exists():
            raise Refused(f"{model}: {name} makes it an adapter of another model; merge it first")
    own, present = code_files(read_config(model)), relative_files(model)
    for pattern in (*PICKLED, "*.py"):
        for name in matching(present, pattern):
            if own.get(name) != (model / name).read_bytes():
                raise Refused(
                    f"{model / name}: can run code where it is loaded and is never packaged"
                )


def _write_documents(
    contents: PackageContents, manifest: Manifest, writer: DirectoryWriter
) -> None:
    documents = {
        bom.NAME: bom.bom_text(contents, manifest, writer.manifest().files),
        CONFIGURATION_NAME: _json(portable(contents.config)),
        PLAN_NAME: contents.plan.to_json(),
        "evaluation.json": _json(_evaluation(contents)),
        ITEMS_NAME: _json(_items(contents)),
        "resolution.json": portable_resolution(contents.resolution).to_json(),
        "README.md": render_card(contents),
        "report.html": render_report(contents),
    }
    for name, text in documents.items():
        write_text(writer.path / name, text)


def _evaluation(contents: PackageContents) -> dict[str, Any]:
    recovery = contents.recovery
    return {
        "schema_version": SCHEMA_VERSION,
        "packaged": contents.packaged,
        "records": {model: record.to_json_value() for model, record in contents.measured.items()},
        "recovery": None if recovery is None else recovery.model_dump(mode="json"),
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
