"""Signing: who vouches for a package, and what of it is told in its lineage afterwards."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from bipline.base.errors import Refused
from bipline.base.progress import note
from bipline.delivery.evidence import Signature
from bipline.delivery.registries.journal_mlflow import Version
from bipline.delivery.signature import add_verdict, check_signature, sign
from bipline.delivery.signer import Signer
from bipline.storage.manifest import MANIFEST_NAME
from bipline.values.verdict import Verdict


def signed(package: Path, signer: Signer | None) -> Signature | None:
    """Sign a package and its lineage, and look at the signature as others will.

    None where nobody signs. Raises as :func:`bipline.delivery.signature.sign` does.
    """
    if signer is None:
        return None
    manifest = sign(package, signer)
    with signer.trusted() as trust:
        if trust is not None:
            check_signature(package, trust)
    note(f"package {manifest.digest[:12]} is signed by {signer}")
    return Signature(holds=True, key=signer.name)


@dataclass(frozen=True)
class Telling:
    """Where a verdict is told beside the registry: in the lineage of each copy of a package.

    ``package`` is the Store's copy, where there is one at hand.
    """

    package: Path | None = None
    signer: Signer | None = None
    signature: Signature | None = None

    def tell(self, verdict: Verdict | None, version: Version) -> None:
        """Add a verdict to every copy that lies here and may be written; why not is told."""
        if verdict is None:
            return
        for place in (self.package, written_place(version.location)):
            if place is None:
                continue
            try:
                add_verdict(place, verdict, self.signer)
            except (Refused, OSError) as error:
                note(f"the verdict is kept in the registry: {error}")


def written_place(location: str) -> Path | None:
    """The folder of a version on this machine; None where it lies elsewhere, or is read alone."""
    if location.startswith("file:"):
        location = url2pathname(urlsplit(location).path)
    place = Path(location)
    here = location.startswith("/") and (place / MANIFEST_NAME).is_file()
    return place if here and os.access(place, os.W_OK) else None
