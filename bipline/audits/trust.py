"""Whose signature a package or its lineage bears, among those that are trusted for it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bipline.audits.findings import differs, holds, unknown
from bipline.base.errors import EnvironmentFailure, Refused
from bipline.delivery import signature, signer
from bipline.settings.trust import BOTH, Part, TrustedKey, TrustSettings, load_trust
from bipline.storage.digests import digest_file
from bipline.storage.manifest import LINEAGE, SIGNATURE_NAME
from bipline.values.audit import Finding

REWRITTEN = (
    "whoever could write here could have rewritten everything consistently, and nothing here would "
    "show it"
)
BOTH_REWRITTEN = "whoever could write to the registry too could have rewritten both"
NOBODY = "no signature is anybody's word here; give --key PUB or --trust FILE"
GIVEN = "--key"


@dataclass(frozen=True)
class Trusted:
    """One whose signatures count: what a reader calls them, for which parts, and their check.

    ``kind`` is the field of a bundle that such a signature bears; ``check`` raises Refused where a
    directory is not signed by them.
    """

    told: str
    parts: tuple[Part, ...]
    kind: str
    check: Callable[[Path], object]


def read_trust(key: Path | None, file: Path | None) -> TrustSettings:
    """Who is trusted by the key and the file that were given.

    Raises InvalidInput for a file that is none.
    """
    found = load_trust(file) if file else None
    if key is None:
        return found or TrustSettings.model_construct()
    given = TrustedKey(name=GIVEN, file=str(key), counts_for=BOTH)
    known = found or TrustSettings.model_construct()
    return known.model_copy(update={"keys": (given, *known.keys)})


def trusted(trust: TrustSettings) -> list[Trusted]:
    """Everybody whose signatures count. Raises InvalidInput for keys and certificates of none."""
    return [
        *(Trusted(_of_file(each), each.counts_for, "publicKey",
                  _by(signer.Trust(key=Path(each.file))))
          for each in trust.keys),
        *(Trusted(f"certificate of {_of_file(each)}", each.counts_for, "x509CertificateChain",
                  _by(signer.Trust(certificate_chain=(Path(each.file),))))
          for each in trust.certificates),
        *(Trusted(f"{each.name} ({each.identity} at {each.issuer})", each.counts_for,
                  "certificate", partial(signature.check_signature, key=signer.Trust(
                      identity=each.identity, issuer=each.issuer)))
          for each in trust.identities),
    ]  # fmt: skip


def trust_findings(trust: TrustSettings) -> Iterator[Finding]:
    """Whose signatures count for what, and who may move aliases."""
    known = trusted(trust)
    for each in known:
        yield holds("trust", f"{each.told}: its signature counts for {' and '.join(each.parts)}")
    for user in trust.users:
        aliases = ", ".join(user.aliases) or "every alias"
        yield holds("trust", f"user {user.user} is {user.name}, who may move {aliases}")
    if not known:
        yield unknown("trust", "nobody's key was given", NOBODY)


def signature_findings(
    place: Path, trust: TrustSettings, digest: str, kept_digest: str | None
) -> Iterator[Finding]:
    """Whose word the package is, and whose its lineage.

    ``kept_digest`` is what a registry keeps of the package with this digest.
    """
    known = trusted(trust)
    kept = kept_digest == digest
    yield _signed("signature", place, [e for e in known if "package" in e.parts], kept)
    if (place / LINEAGE).is_dir():
        by = [each for each in known if "lineage" in each.parts]
        yield _signed("lineage's signature", place / LINEAGE, by, False)


def _signed(about: str, place: Path, known: list[Trusted], kept: bool) -> Finding:
    if known:
        return _among(about, place, known)
    is_signed = signature.is_signed(place)
    said = "signed, by whom is not known without --key or --trust" if is_signed else "unsigned"
    if kept:
        return unknown(about, f"{said}; the registry keeps the same digest", BOTH_REWRITTEN)
    return unknown(about, said, REWRITTEN)


def _among(about: str, place: Path, known: list[Trusted]) -> Finding:
    if not signature.is_signed(place):
        return differs(about, f"{place}: is not signed: there is no {SIGNATURE_NAME}", REWRITTEN)
    kind, reasons = _kind(place), []
    for each in known:
        if each.kind != kind:
            continue
        try:
            each.check(place)
            return holds(about, f"signed by {each.told}, who is trusted for it")
        except Refused as error:
            reasons.append(str(error))
        except EnvironmentFailure as error:
            return unknown(about, str(error), REWRITTEN)
    said = reasons[0] if len(reasons) == 1 else "it is by none of those who are trusted for it"
    return differs(about, said, REWRITTEN)


def _kind(place: Path) -> str:
    """What a signature names its signer by: a public key, a chain of certificates, or one alone."""
    try:
        bundle = json.loads((place / SIGNATURE_NAME).read_bytes())
        return str(next(iter({*bundle["verificationMaterial"]} - {"tlogEntries"})))
    except (ValueError, KeyError, TypeError, StopIteration, RecursionError):
        return "publicKey"  # whose check says what is wrong with it


def _of_file(each: Any) -> str:
    return f"{each.name} ({Path(each.file).name}, sha256 {digest_file(Path(each.file))[:12]})"


def _by(trust: signer.Trust) -> Callable[[Path], object]:
    """The check of those who may be asked offline. Raises InvalidInput for a file that is none."""
    trust.verifier()
    return partial(signature.check_signature, key=trust)
