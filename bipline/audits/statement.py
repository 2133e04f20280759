"""The in-toto statement: validated again by in-toto's definitions, then held to the package.

A statement that is well formed may still tell of other files, settings or runs than the package.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bipline.audits.findings import compared, holds, unknown
from bipline.base.extras import installed
from bipline.delivery import provenance
from bipline.delivery.evidence import RESOLUTION
from bipline.delivery.export import CONFIGURATION_NAME
from bipline.storage.manifest import LINEAGE, Manifest
from bipline.storage.strict_json import read_json
from bipline.values.audit import Finding
from bipline.values.resolution import read_resolution

ABOUT = "provenance"


def statement_findings(place: Path, manifest: Manifest) -> Iterator[Finding]:
    """The statement by its schema, and each thing that it says. Raises Refused for none of ours."""
    path = place / LINEAGE / provenance.NAME
    if not path.is_file():
        said = f"no {LINEAGE}/{provenance.NAME}"
        yield unknown(ABOUT, said, "no statement that other tools read tells of its making")
        return
    if not installed(provenance.EXTRA):
        said = f"needs pip install 'bipline[{provenance.EXTRA}]' to be validated"
        yield unknown(ABOUT, said, "whether other tools take the statement is not known")
        return
    provenance.check_statement(place, manifest, path)
    value = read_json(path, "provenance", "")
    said = f"{provenance.STATEMENT}, {provenance.PREDICATE}: valid by in-toto's own definitions"
    yield holds(ABOUT, f"{said}, of this package")
    yield compared(ABOUT, "its dependencies, configuration and run are the package's",
                   _said_twice(value["predicate"], place))  # fmt: skip


def _said_twice(predicate: Mapping[str, Any], place: Path) -> dict[str, tuple[object, object]]:
    """What the statement and the package's documents both tell, by what it is."""
    build, run = predicate["buildDefinition"], predicate["runDetails"]
    told = {each["name"]: each["digest"]["sha256"] for each in build["resolvedDependencies"]}
    known = {
        each["name"]: each["digest"]["sha256"]
        for each in provenance.dependencies(read_resolution(place / RESOLUTION))
    }
    pairs: dict[str, tuple[object, object]] = {
        f"dependency {name}": (told.get(name), known.get(name)) for name in sorted({*told, *known})
    }
    if (place / CONFIGURATION_NAME).is_file():
        asked = dict(build["externalParameters"]["configuration"])
        kept = read_json(place / CONFIGURATION_NAME, "configuration", "")
        pairs |= {f"configuration.{key}": (asked.get(key), kept.get(key)) for key in sorted(kept)}
    told_run = str(run["metadata"]["invocationId"])
    there = (place / LINEAGE / "runs" / f"{told_run}.json").is_file()
    pairs["run"] = (told_run, told_run if there else "no run of the lineage")
    return pairs
