"""Signatures of manifests, by the ``model_signing`` package.

A package's lineage has a manifest of its own, so it is signed apart, by the same call.

A manifest lists every file with its sha256, so who signs it signs them all. The signature lies
beside it, a Sigstore bundle over an in-toto statement; no digest covers it. Without bipline it is
verified by ``model_signing verify key manifest.json --signature manifest.json.sig --public_key K``,
the files then by their sha256.
"""

from __future__ import annotations

import json
from binascii import Error as NotBase64
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bipline.base.errors import EnvironmentFailure, InvalidInput, Refused
from bipline.delivery.lineage import record_verdict, verify_lineage
from bipline.delivery.signer import Signer, Trust, line
from bipline.settings.signing import SignSettings
from bipline.storage.digests import digest_file
from bipline.storage.directory import write_text
from bipline.storage.manifest import (
    LINEAGE,
    MANIFEST_NAME,
    SIGNATURE_NAME,
    Manifest,
    read_manifest,
    verify_directory,
)
from bipline.values.verdict import Verdict


def is_signed(directory: Path) -> bool:
    """Whether a signature lies beside the manifest; whose it is, is not looked at."""
    return (directory / SIGNATURE_NAME).is_file()


def sign(directory: Path, signer: Path | Signer) -> Manifest:
    """Sign a directory, and its lineage where it has one; a path is of a private key in PEM.

    All files are verified first. An earlier signature is replaced. Raises InvalidInput for a key
    that cannot sign, Refused where a file is not as listed, EnvironmentFailure where Sigstore does
    not answer.
    """
    signer = _signer(signer)
    config = signer.config()
    manifest = verify_directory(directory)
    lineage = verify_lineage(directory, manifest)
    _sign_manifest(config, directory, signer)
    if lineage is not None:
        _sign_manifest(config, directory / LINEAGE, signer)
    return manifest


def add_verdict(package: Path, verdict: Verdict, signer: Signer | None = None) -> None:
    """Add a verdict to the lineage of a package, and sign the lineage again where it was signed.

    A signed lineage is left as it is without its signer, since what is added would take the
    signature from it. Raises Refused for that, and where the lineage is not the signer's or not as
    listed: who signs it again vouches for all of it.
    """
    folder, manifest = package / LINEAGE, read_manifest(package)
    if signer is None:
        if is_signed(folder):
            raise Refused(
                f"{folder}: is signed, and stays as it was signed: the verdict is not in it; with "
                "the key that signed it, it is added and signed again"
            )
        record_verdict(package, verdict)
        return
    config = signer.config()
    if verify_lineage(package, manifest) is not None and is_signed(folder):
        with signer.trusted() as trust:
            if trust is not None:
                check_signature(folder, trust)
    record_verdict(package, verdict)
    _sign_manifest(config, folder, signer)


def _signer(given: Path | Signer) -> Signer:
    return given if isinstance(given, Signer) else Signer(SignSettings(key=str(given)))


def _trust(given: Path | Trust) -> Trust:
    return given if isinstance(given, Trust) else Trust(key=given)


def _sign_manifest(config: Any, directory: Path, signer: Signer) -> None:
    # Not beside the manifest: what a kill leaves there would be a file that nothing lists.
    with TemporaryDirectory() as temporary:
        made = Path(temporary) / SIGNATURE_NAME
        try:
            config.sign(directory / MANIFEST_NAME, made)
        except Exception as error:
            # By a key nothing can fail that was not seen before; online, what its clients raise.
            if not signer.settings.keyless:
                raise
            raise EnvironmentFailure(f"Sigstore did not sign: {line(error)}") from None
        write_text(directory / SIGNATURE_NAME, made.read_text(encoding="utf-8"))


def verify(directory: Path, key: Path | Trust | None = None, digest: str | None = None) -> Manifest:
    """Re-hash every file, of the lineage too; with ``key``, whose both signatures must be.

    A path is of a public key in PEM.

    ``digest`` is what somebody else keeps of the directory: all of it, or 12 digits at least.
    Raises Refused at the first difference, InvalidInput for a key or digest that is none.
    """
    if digest is not None:
        _check_digest(digest)
    if key is not None:
        check_signature(directory, key)
        if (directory / LINEAGE).exists():
            check_signature(directory / LINEAGE, key)
    manifest = verify_directory(directory)
    verify_lineage(directory, manifest)
    if digest is not None and not manifest.digest.startswith(digest):
        raise Refused(f"{directory}: has digest {manifest.digest}, not {digest}")
    return manifest


def _check_digest(digest: str) -> None:
    if not (12 <= len(digest) <= 64 and set(digest) <= set("0123456789abcdef")):
        raise InvalidInput(f"digest {digest!r}: give 12 to 64 digits of 0-9 and a-f")


def check_signature(directory: Path, key: Path | Trust) -> None:
    """Hold the signature of a directory's manifest to whom is trusted; a path is of a public key.

    Raises Refused where there is none, or it is another's; InvalidInput for a key that is none.
    """
    config = _trust(key).verifier()
    if not is_signed(directory):
        raise Refused(f"{directory}: is not signed: there is no {SIGNATURE_NAME}")
    if (signed := _signed_digest(directory)) != (found := digest_file(directory / MANIFEST_NAME)):
        raise Refused(
            f"{directory}: {SIGNATURE_NAME} is of another {MANIFEST_NAME}: {signed[:12]}, "
            f"this one is {found[:12]}"
        )
    try:
        config.verify(directory / MANIFEST_NAME, directory / SIGNATURE_NAME)
    except Exception as error:
        # What its libraries raise is not one class; to the reader all of it means the same.
        reason = line(error)
        raise Refused(f"{directory}: {SIGNATURE_NAME} is not by {key}: {reason}") from None


def _signed_digest(directory: Path) -> str:
    """The sha256 of the manifest that the signature claims to be of."""
    import base64

    path = directory / SIGNATURE_NAME
    try:
        payload = json.loads(path.read_bytes())["dsseEnvelope"]["payload"]
        statement = json.loads(base64.b64decode(payload, validate=True))
        (resource,) = statement["predicate"]["resources"]
        return str(resource["digest"])
    except (ValueError, KeyError, TypeError, NotBase64, RecursionError):
        raise Refused(f"{path}: not a signature of a manifest") from None
