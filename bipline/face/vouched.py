"""``bipline.verify`` and ``bipline.sign``: is every byte still there, and whose word is it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bipline.base.errors import InvalidInput
from bipline.face.keywords import Place
from bipline.settings.loading import validated
from bipline.settings.signing import SignSettings

if TYPE_CHECKING:
    from bipline.storage.manifest import Manifest


def verify(
    directory: Place,
    *,
    key: Place | None = None,
    certificate_chain: Sequence[Place] = (),
    identity: str | None = None,
    issuer: str | None = None,
    digest: str | None = None,
) -> Manifest:
    """Re-hash every file of a directory against its manifest. Raises Refused where one differs.

    Lineage, provenance and BOM of a package are held to what they are about too. ``key`` is a
    public key (PEM) that must have signed the manifest, and the lineage's; or
    ``certificate_chain`` what the signer's certificate must be under; or ``identity`` and
    ``issuer`` who signed without a key. ``digest`` is what a registry keeps of the directory.
    """
    from bipline.delivery import vouching
    from bipline.delivery.signer import trust_of

    chain = tuple(map(Path, certificate_chain))
    trust = trust_of(Path(key) if key else None, chain, identity, issuer)
    return vouching.verify(Path(directory), trust, digest).manifest


def sign(
    directory: Place,
    key: Place | None = None,
    *,
    certificate: Place | None = None,
    certificate_chain: Sequence[Place] = (),
    keyless: bool = False,
) -> Manifest:
    """Verify a directory and sign its manifest, and its lineage's.

    By a private key (PEM), by one with its certificate and those up to the root, or without a key.
    """
    from bipline.delivery import signature
    from bipline.delivery.signer import signer_of

    chosen = {
        "key": key and str(key), "certificate": certificate and str(certificate),
        "certificate_chain": tuple(map(str, certificate_chain)), "keyless": keyless,
    }  # fmt: skip
    signer = signer_of(validated(SignSettings, chosen))
    if signer is None:
        raise InvalidInput("sign: by whom? give --key, --key with --certificate, or --keyless")
    return signature.sign(Path(directory), signer)
