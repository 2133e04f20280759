"""What vouches for a directory, beside its files being those that its manifest lists.

Lineage, provenance, BOM and the origin in weights and config are each held to what they are about;
what is not there is said, and what cannot be looked at here too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bipline.base.errors import InvalidInput, Refused
from bipline.base.extras import installed
from bipline.delivery import bom, provenance, signature
from bipline.delivery.formats.directory import RECORD_NAME
from bipline.delivery.formats.interface import Format
from bipline.delivery.formats.registry import FORMATS
from bipline.delivery.origin import model_origin
from bipline.delivery.signer import Trust
from bipline.model.safetensors_header import read_metadata
from bipline.storage.folder import Folder, open_folder
from bipline.storage.manifest import LINEAGE, Manifest, read_manifest
from bipline.values.export import ExportRecord
from bipline.values.origin import SECTION, ModelOrigin
from bipline.values.plan import PLAN_NAME, read_plan
from bipline.values.reading import read_value
from bipline.values.resolution import CONFIG

# What every part of a model tells alike; shards of a resumed run may be of two commits.
COMMON = ("base_tensor_digest", "plan_digest")
VERSION = f"{SECTION}.version"


@dataclass(frozen=True)
class Verified:
    """A directory whose files are all as listed, and a sentence on each thing beside them."""

    manifest: Manifest
    told: tuple[str, ...]


@dataclass(frozen=True)
class Told:
    """A sentence on one thing beside the files; ``held`` is whether it was held to something."""

    sentence: str
    held: bool = True


def verify(directory: Path, key: Path | Trust | None = None, digest: str | None = None) -> Verified:
    """All of :func:`bipline.delivery.signature.verify`, and what else vouches for the directory.

    Raises Refused at the first thing that is not what it says, InvalidInput as there.
    """
    manifest = signature.verify(directory, key, digest)
    return Verified(manifest, tuple(_told(directory, manifest, key)))


def parts(
    directory: Path, manifest: Manifest, key: Path | Trust | None
) -> Iterator[tuple[str, Callable[[], Iterator[Told]]]]:
    """What is looked at beside a directory's bytes, by name; each says what it finds.

    A part raises Refused where it is not about this directory, InvalidInput where it is not read.
    """
    for place in (directory, directory / "hf"):
        if (place / CONFIG).is_file():
            yield "origin", partial(_origin, place, manifest.info.get("tensor_digest"))
    for name, each in FORMATS.items():
        for place in (directory, directory / name):
            if each.file and (place / each.file).is_file():
                yield "origin", partial(_file_origin, place, each, manifest.info)
    if "tensor_digest" in manifest.info and manifest.kind == "package":
        yield "BOM", partial(_bom, directory, manifest)
        yield "lineage", partial(_lineage, directory, manifest, key)


def _told(directory: Path, manifest: Manifest, key: Path | Trust | None) -> Iterator[str]:
    for _, part in parts(directory, manifest, key):
        yield from (each.sentence for each in part())


def _bom(directory: Path, manifest: Manifest) -> Iterator[Told]:
    if bom.NAME not in manifest.files:
        yield Told(f"no {bom.NAME}", False)
    elif not installed(bom.EXTRA):
        needed = f"that needs pip install 'bipline[{bom.EXTRA}]'"
        yield Told(f"{bom.NAME}: not held to its schema; {needed}", False)
    else:
        bom.check_bom(directory, manifest)
        yield Told(f"{bom.NAME}: CycloneDX 1.6, valid, of these tensors")


def _lineage(directory: Path, manifest: Manifest, key: Path | Trust | None) -> Iterator[Told]:
    folder = directory / LINEAGE
    if not folder.exists():
        yield Told("no lineage, so no provenance: who made it when is not told here", False)
        return
    files = read_manifest(folder).files
    signed = f"signed by {key}" if key else "unsigned"
    if not key and signature.is_signed(folder):
        signed = "signed, by whom only --key PUB tells"
    yield Told(f"{LINEAGE}: {len(files)} files, all as listed, of this package; {signed}")
    name = f"{LINEAGE}/{provenance.NAME}"
    if provenance.NAME not in files:
        yield Told(f"no {name}", False)
    elif installed(provenance.EXTRA):
        provenance.check_statement(directory, manifest, folder / provenance.NAME)
        yield Told(f"{name}: in-toto statement, SLSA provenance v1, valid, of this package")
    else:
        needed = f"that needs pip install 'bipline[{provenance.EXTRA}]'"
        yield Told(f"{name}: not held to its definitions; {needed}", False)


def _origin(place: Path, tensors: Any) -> Iterator[Told]:
    """What a model tells of where it came from, the same in its config, weights and plan.

    ``tensors`` is the digest that the manifest has of them, where it has one.
    """
    folder = open_folder(place)
    try:
        origin = model_origin(folder)
        metadata = {name: read_metadata(folder.open(name)) for name in _shards(folder)}
        plan = read_plan(place / PLAN_NAME) if (place / PLAN_NAME).is_file() else None
    except InvalidInput as error:
        raise Refused(f"{place}: {error}") from None
    if origin is None:
        if any(key.startswith(f"{SECTION}.") for told in metadata.values() for key in told):
            raise Refused(f"{place}: the weights tell an origin, and {CONFIG} tells none")
        yield Told(f"{CONFIG} tells no origin", False)
        return
    if plan is not None and origin.plan_digest != plan.digest:
        raise Refused(f"{place}: {CONFIG} names another plan than {PLAN_NAME}")
    if plan is not None and origin.base_tensor_digest != plan.tensor_digest:
        raise Refused(f"{place}: {CONFIG} names another base model than {PLAN_NAME}")
    if origin.tensor_digest and tensors and origin.tensor_digest != tensors:
        raise Refused(f"{place}: {CONFIG} names other tensors than the manifest")
    for name, told in metadata.items():
        for field in COMMON:
            if told.get(f"{SECTION}.{field}") != getattr(origin, field):
                raise Refused(f"{place}: {name} and {CONFIG} tell another {field} each")
    yield Told(_sentence(origin))


def _file_origin(place: Path, format_: Format, info: Mapping[str, Any]) -> Iterator[Told]:
    """What a file of an engine's format tells of where it came from, as beside it and listed."""
    file = place / format_.file
    try:
        record = read_value(place / RECORD_NAME, ExportRecord, "export record")
    except InvalidInput as error:
        raise Refused(f"{place}: {error}") from None
    if record.origin.tensor_digest != info.get("tensor_digest"):
        raise Refused(f"{place}: {RECORD_NAME} names other tensors than the manifest")
    if not installed(format_.extra):
        needed = f"that needs pip install 'bipline[{format_.extra}]'"
        yield Told(f"{file.name}: its origin was not read; {needed}", False)
        return
    listed, told = record.origin.metadata(), format_.origin(file)
    for key in sorted(listed.keys() | told.keys()):
        # Files of before had a version of which their record told nothing.
        if listed.get(key) != told.get(key) and not (key == VERSION and key not in listed):
            raise Refused(f"{file}: tells another {key} than {RECORD_NAME}")
    yield Told(f"{file.name}: tells of the same tensors, {record.origin.tensor_digest[:12]}")


def _shards(folder: Folder) -> list[str]:
    return [name for name in folder.names() if name.endswith(".safetensors")]


def _sentence(origin: ModelOrigin) -> str:
    base = f"tensors {origin.base_tensor_digest[:12]}"
    if origin.base_model:
        revision = f" at {origin.base_revision}" if origin.base_revision else ""
        base = f"{origin.base_model}{revision}, {base}"
    plan = f" by plan {origin.plan_digest[:12]}" if origin.plan_digest else ""
    code = f"bipline {origin.version}, commit {origin.git_commit or 'unknown'}"
    return f"says that it was made from {base}{plan}, by {code}"
