"""The package itself: its bytes, whose word they are, and what vouches for it inside."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from bipline.audit.findings import answered, differs, holds, unknown
from bipline.base.errors import Refused
from bipline.delivery import signature
from bipline.delivery.vouching import Told, parts
from bipline.storage.manifest import Manifest, read_manifest, verify_directory
from bipline.values.audit import Finding

REWRITTEN = (
    "whoever could write here could have rewritten everything consistently, and nothing here would "
    "show it"
)
BOTH_REWRITTEN = "whoever could write to the registry too could have rewritten both"


def package_findings(place: Path, key: Path | None, kept_digest: str | None) -> Iterator[Finding]:
    """Every byte, the signature, and each of origin, BOM, lineage and provenance.

    ``kept_digest`` is what a registry keeps of it. Raises InvalidInput for a key that is none.
    """
    manifest = read_manifest(place)
    yield from answered("bytes", lambda: [_bytes(place)])
    yield _signature(place, key, manifest, kept_digest)
    for name, part in parts(place, manifest, key):
        yield from answered(name, partial(_told, name, part))


def _bytes(place: Path) -> Finding:
    found = verify_directory(place)
    size = found.total_bytes / 1e6
    said = f"{len(found.files)} files, {size:.1f} MB, all as listed; digest {found.digest}"
    return holds("bytes", said)


def _signature(
    place: Path, key: Path | None, manifest: Manifest, kept_digest: str | None
) -> Finding:
    if key is not None:
        try:
            signature.check_signature(place, key)
        except Refused as error:
            return differs("signature", str(error), REWRITTEN)
        return holds("signature", f"signed by {key}, the key that was trusted")
    signed = signature.is_signed(place)
    said = "signed, by whom is not known without --key" if signed else "unsigned"
    if kept_digest == manifest.digest:
        return unknown("signature", f"{said}; the registry keeps the same digest", BOTH_REWRITTEN)
    return unknown("signature", said, REWRITTEN)


def _told(name: str, part: Callable[[], Iterator[Told]]) -> Iterator[Finding]:
    for told in part():
        if told.held:
            yield holds(name, told.sentence)
        else:
            yield unknown(name, told.sentence, f"its {name} is not checked")
