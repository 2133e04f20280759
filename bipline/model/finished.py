"""A model that bipline finished is held to its manifest whenever it is opened for work.

A model directory lists its own files; the model in a package is listed by the package around it.
What is read anyway is not read twice: digests that are known already are compared as they are.
"""

from __future__ import annotations

from collections.abc import Mapping

from bipline.base.errors import InvalidInput, Refused
from bipline.model.side_files import is_model_file
from bipline.storage.folder import Folder, LocalFolder, digest_byte_file, open_folder
from bipline.storage.manifest import MANIFEST_NAME, FileEntry, differs, parse_manifest
from bipline.storage.strict_json import parse
from bipline.values.plan import PLAN_NAME

PACKAGED = "hf"


def hold_to_manifest(folder: Folder, hashed: Mapping[str, str] | None = None) -> None:
    """Compare a model with the manifest beside or around it; nothing where there is none.

    ``hashed`` are sha256 by name that are known. Raises Refused where a listed file differs or is
    missing and where one more belongs to the model, InvalidInput for a broken manifest.
    """
    listed = _listed(folder)
    if listed is None:
        return
    present, known = folder.names(), hashed or {}
    for name in present:
        if name not in listed and name != MANIFEST_NAME and is_model_file(name):
            raise Refused(f"{folder.location}: {name} is not listed in {MANIFEST_NAME}")
    for name, entry in listed.items():
        if "/" not in name and name not in present:
            raise Refused(f"{folder.location}: {name} is listed in {MANIFEST_NAME} but missing")
        if (known.get(name) or digest_byte_file(folder.open(name))) != entry.sha256:
            raise differs(folder.location, name)


def _listed(folder: Folder) -> dict[str, FileEntry] | None:
    """What a manifest of ours lists of a folder, by names inside it."""
    names = folder.names()
    if MANIFEST_NAME in names:
        text = folder.read(MANIFEST_NAME)
        if PLAN_NAME in names or _is_ours(text):
            return parse_manifest(text, f"{folder.location}/{MANIFEST_NAME}").files
        return None
    place = str(folder.path.resolve()) if isinstance(folder, LocalFolder) else folder.location
    around, _, name = place.rpartition("/")
    return _packaged(around) if name == PACKAGED else None


def _packaged(package: str) -> dict[str, FileEntry] | None:
    try:
        text = open_folder(package).read(MANIFEST_NAME)
    except InvalidInput:
        return None
    if not _is_ours(text):
        return None
    files = parse_manifest(text, f"{package}/{MANIFEST_NAME}").files
    inside = f"{PACKAGED}/"
    return {n.removeprefix(inside): entry for n, entry in files.items() if n.startswith(inside)}


def _is_ours(text: bytes) -> bool:
    """Whether a ``manifest.json`` is one of this project, whole or not: others have some too."""
    try:
        value = parse(text)
    except ValueError:
        return b'"sha256"' in text
    return isinstance(value, dict) and {"kind", "files"} <= value.keys()
