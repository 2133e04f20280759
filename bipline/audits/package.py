"""The package itself: its bytes, and what vouches for it inside."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from bipline.audits.findings import answered, differs, holds, unknown
from bipline.audits.opening import Opened
from bipline.delivery.lineage import verify_lineage
from bipline.delivery.vouching import Told, parts
from bipline.storage.manifest import Manifest
from bipline.values.audit import Finding

LINEAGE_EDITED = "what it tells of runs, times, hosts and verdicts is not to be relied on"


def bytes_finding(opened: Opened) -> Finding:
    """Whether every file is as listed: each was hashed when the package was opened."""
    if opened.problem or opened.manifest is None:
        return differs("bytes", opened.problem)
    found = opened.manifest
    size, copied = found.total_bytes / 1e6, f"; {opened.fetched}" if opened.fetched else ""
    said = f"{len(found.files)} files, {size:.1f} MB, all as listed; digest {found.digest}{copied}"
    return holds("bytes", said)


def vouching_findings(place: Path, manifest: Manifest) -> Iterator[Finding]:
    """Each of origin, BOM, lineage and provenance."""
    for name, part in parts(place, manifest, None):
        if name == "lineage":
            yield from answered(name, lambda: _lineage(place, manifest), LINEAGE_EDITED)
        else:
            yield from answered(name, partial(_told, name, part))


def _lineage(place: Path, manifest: Manifest) -> Iterator[Finding]:
    """The lineage hashed; its provenance is looked at apart."""
    found = verify_lineage(place, manifest)
    if found is None:
        said = "no lineage: who made it, when and where is not told here"
        yield unknown("lineage", said, "its making rests on what the package's documents say")
    else:
        yield holds("lineage", f"{len(found.files)} files, all as listed, of this package")


def _told(name: str, part: Callable[[], Iterator[Told]]) -> Iterator[Finding]:
    for told in part():
        if told.held:
            yield holds(name, told.sentence)
        else:
            yield unknown(name, told.sentence, f"its {name} is not checked")
