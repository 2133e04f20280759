"""The lineage of a package: runs, times, hosts and verdicts, in a folder outside its digest.

``lineage/`` has a manifest of its own, which names the package it belongs to and is signed apart:
what is learnt of a package later changes neither its digest nor its signature.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bipline.base.errors import InvalidInput, Refused
from bipline.delivery import provenance
from bipline.delivery.evidence import RESOLUTION
from bipline.storage.directory import write_text
from bipline.storage.locks import waiting_lock
from bipline.storage.manifest import (
    LINEAGE,
    MANIFEST_NAME,
    SIGNATURE_NAME,
    Manifest,
    list_files,
    read_manifest,
    verify_directory,
)
from bipline.values.lineage import RunLineage
from bipline.values.resolution import read_resolution
from bipline.values.verdict import Verdict

KIND = "lineage"
PACKAGE = "package"


def add_to_lineage(package: Path, documents: Mapping[str, str]) -> None:
    """Add files to a package's lineage, by name; its manifest comes last, its signature goes.

    What is there stays, unless it has the same name.
    """
    folder, digest = package / LINEAGE, read_manifest(package).digest
    folder.mkdir(exist_ok=True)
    _refuse_nested(folder)
    with waiting_lock(folder):
        (folder / SIGNATURE_NAME).unlink(missing_ok=True)
        for leftover in folder.rglob(".*.partial"):  # of a run that was killed here
            leftover.unlink()
        for name, text in documents.items():
            (folder / name).parent.mkdir(exist_ok=True)
            write_text(folder / name, text)
        manifest = Manifest(kind=KIND, files=list_files(folder), info={PACKAGE: digest})
        write_text(folder / MANIFEST_NAME, manifest.to_json())


def record_run(package: Path, config: Mapping[str, Any], run: RunLineage) -> None:
    """Add a run to the lineage of the package that it made or found again.

    The provenance is that of the first run that is known here: a later one found the package.
    """
    documents = {f"runs/{run.run_id}.json": run.to_json()}
    if not (package / LINEAGE / provenance.NAME).is_file():
        resolution = read_resolution(package / RESOLUTION)
        manifest = read_manifest(package)
        documents[provenance.NAME] = provenance.statement(
            package, manifest, resolution, config, run
        )
    add_to_lineage(package, documents)


def record_verdict(package: Path, verdict: Verdict) -> None:
    """Add what a gate said of the package."""
    add_to_lineage(package, {verdict.file_name: verdict.to_json()})


def verify_lineage(package: Path, manifest: Manifest) -> Manifest | None:
    """Re-hash the lineage of a package with this manifest; None where there is none.

    Raises Refused where a file is not as listed, or it is another package's.
    """
    folder = package / LINEAGE
    if not folder.exists():
        return None
    _refuse_nested(folder)
    try:
        found = verify_directory(folder)
    except InvalidInput as error:
        raise Refused(f"{package}: its lineage cannot be read: {error}") from None
    if found.kind != KIND:
        raise Refused(f"{folder}: holds a {found.kind}, not a lineage")
    if (named := found.info.get(PACKAGE)) != manifest.digest:
        raise Refused(
            f"{folder}: is the lineage of package {str(named)[:12]}, not of {manifest.digest[:12]}"
        )
    return found


def _refuse_nested(folder: Path) -> None:
    """A folder of this name inside it would be listed by no manifest. Raises Refused."""
    if os.path.lexists(folder / LINEAGE):
        raise Refused(f"{folder}: holds a {LINEAGE} of its own, which nothing lists; remove it")
