"""Who signs, and who is trusted to have signed, by the ``model_signing`` package.

A signer is tried before any work: it signs a file of its own, and its public half must find that
signature good. Neither a key nor its password is written, told or kept.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bipline.base.errors import BiplineError, EnvironmentFailure, InvalidInput
from bipline.base.extras import check, require
from bipline.settings.signing import PASSWORD, TOKEN, SignSettings

EXTRA = "sign"
PRIVATE, PUBLIC = "a private elliptic curve key", "a public elliptic curve key"
# What reading a key or certificate raises; of a key of another kind the library asks its curve.
UNFIT = (OSError, ValueError, TypeError, AttributeError)


@dataclass(frozen=True)
class Trust:
    """Whose signature is believed: a public key's, one under certificates, or an identity's.

    ``identity`` is who, such as an address, and ``issuer`` who vouches for that, as Sigstore has
    them.
    """

    key: Path | None = None
    certificate_chain: tuple[Path, ...] = ()
    identity: str | None = None
    issuer: str | None = None

    def __str__(self) -> str:
        if self.key:
            return str(self.key)
        if self.certificate_chain:
            return f"a certificate under {', '.join(map(str, self.certificate_chain))}"
        return f"{self.identity} of {self.issuer}"

    def verifier(self) -> Any:
        """What verifies. Raises InvalidInput for files that are none, EnvironmentFailure online."""
        config = require("model_signing.verifying", EXTRA).Config()
        if self.key:
            with _read(self.key, PUBLIC):
                return config.use_elliptic_key_verifier(public_key=self.key)
        if self.certificate_chain:
            for each in self.certificate_chain:
                _certificates(each)
            return config.use_certificate_verifier(certificate_chain=self.certificate_chain)
        with _online():
            return config.use_sigstore_verifier(identity=self.identity, oidc_issuer=self.issuer)


def trust_of(
    key: Path | None = None,
    certificate_chain: tuple[Path, ...] = (),
    identity: str | None = None,
    issuer: str | None = None,
) -> Trust | None:
    """Whose signature is asked for; None for nobody's. Raises InvalidInput for more than one."""
    if bool(identity) != bool(issuer):
        raise InvalidInput("give --identity and --issuer together: who signed, and who vouches")
    if sum(map(bool, (key, certificate_chain, identity))) > 1:
        raise InvalidInput("give one of --key, --certificate-chain and --identity")
    given = Trust(key, tuple(certificate_chain), identity, issuer)
    return given if given != Trust() else None


@dataclass(frozen=True)
class Signer:
    """Who signs, as settings say it, and what of it others may trust."""

    settings: SignSettings

    def __str__(self) -> str:
        chosen = self.settings
        if chosen.keyless:
            return "Sigstore, without a key"
        return f"certificate {chosen.certificate}" if chosen.certificate else str(chosen.key)

    @property
    def name(self) -> str:
        """What records call it: a file's own name, as paths of a machine are nobody's business."""
        file = self.settings.certificate or self.settings.key
        return "Sigstore" if self.settings.keyless else Path(str(file)).name

    def config(self) -> Any:
        """What signs a file.

        Raises InvalidInput where it cannot, EnvironmentFailure where Sigstore does not answer.
        """
        chosen, config = self.settings, require("model_signing.signing", EXTRA).Config()
        if chosen.keyless:
            token = _identity_token()
            with _online():
                return config.use_sigstore_signer(identity_token=token)
        key = Path(str(chosen.key))
        if chosen.certificate:
            return self._with_certificate(config, key, Path(chosen.certificate))
        with _read(key, PRIVATE):
            # Typed as text, and handed on to a library that takes bytes alone.
            return config.use_elliptic_key_signer(private_key=key, password=_password())

    def _with_certificate(self, config: Any, key: Path, certificate: Path) -> Any:
        (own, *_), chain = _certificates(certificate), self.settings.certificate_chain
        now = datetime.now(UTC)
        if not own.not_valid_before_utc <= now <= own.not_valid_after_utc:
            raise InvalidInput(
                f"{certificate}: is valid from {own.not_valid_before_utc:%Y-%m-%d} to "
                f"{own.not_valid_after_utc:%Y-%m-%d}, which is not today"
            )
        for each in chain:
            _certificates(Path(each))
        with _read(key, PRIVATE, "a key with a certificate is taken without a password"):
            try:
                return config.use_certificate_signer(
                    private_key=key, signing_certificate=certificate, certificate_chain=chain
                )
            except ValueError as error:
                if "does not match" in str(error):
                    raise InvalidInput(f"{certificate}: is not the certificate of {key}") from None
                raise

    @contextmanager
    def trusted(self) -> Iterator[Trust | None]:
        """What its signatures are held to, for the length of the block; None for a keyless one."""
        if self.settings.keyless:
            yield None
        elif chain := self.settings.certificate_chain:
            yield Trust(certificate_chain=tuple(map(Path, chain)))
        else:
            with TemporaryDirectory() as temporary:
                public = Path(temporary) / "public.pem"
                public.write_bytes(_public_half(Path(str(self.settings.key))))
                yield Trust(key=public)

    def check(self) -> None:
        """Sign a file that nobody keeps, and verify it; of a keyless one ask for its identity.

        Raises InvalidInput or EnvironmentFailure where it cannot sign, before any work.
        """
        check(EXTRA)
        if self.settings.keyless:
            # No trial: what Sigstore signs is told to everybody for ever.
            _identity_token()
            return
        config = self.config()
        with TemporaryDirectory() as temporary, self.trusted() as trust:
            file, made = Path(temporary) / "file", Path(temporary) / "file.sig"
            file.write_bytes(b"tried")
            config.sign(file, made)
            if trust is None:
                return
            verifier = trust.verifier()
            try:
                verifier.verify(file, made)
            except Exception as error:
                # What its libraries raise is not one class; here all of it means the same.
                raise InvalidInput(
                    f"{self}: what it signs does not verify under certificate_chain: {line(error)}"
                ) from None


def signer_of(settings: SignSettings) -> Signer | None:
    """Who signs; None where nobody is asked to."""
    return Signer(settings) if settings.asked else None


def line(error: Exception) -> str:
    """What a library says, in one line."""
    return " ".join(str(error).split()) or type(error).__name__


@contextmanager
def _read(file: Path, what: str, encrypted: str = "") -> Iterator[None]:
    """Say in one line what is wrong with a file that is read here."""
    try:
        yield
    except BiplineError:
        raise
    except UNFIT as error:
        raise InvalidInput(f"{file}: not {what}: {_why(file, error, encrypted)}") from None


def _why(file: Path, error: Exception, encrypted: str) -> str:
    if isinstance(error, OSError):
        return error.strerror or line(error)
    if isinstance(error, AttributeError):
        return "it is of another kind; P-256, P-384 and P-521 will do"
    with suppress(OSError):
        content = file.read_bytes()
        if b"PUBLIC KEY-----" in content and b"PRIVATE KEY-----" not in content:
            return "it is a public key; give the private one"
    told = line(error)
    if "was not given" in told:
        return encrypted or f"it is encrypted, and {PASSWORD} is not set"
    if "was given but" in told:
        return f"it is not encrypted, and {PASSWORD} is set"
    return told


def _password() -> bytes | None:
    given = os.environ.get(PASSWORD)
    return given.encode() if given else None


def _public_half(key: Path) -> bytes:
    serialization = require("cryptography.hazmat.primitives.serialization", EXTRA)
    private = serialization.load_pem_private_key(key.read_bytes(), _password())
    return bytes(
        private.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )


def _certificates(file: Path) -> Any:
    """The certificates in a file. Raises InvalidInput where there is none."""
    x509 = require("cryptography.x509", EXTRA)
    with _read(file, "a certificate in PEM"):
        return x509.load_pem_x509_certificates(file.read_bytes())


def _identity_token() -> str:
    """A token that says who this run is. Nobody is asked: a pipeline has no one to ask.

    Raises EnvironmentFailure where there is none, or it is no longer good.
    """
    oidc = require("sigstore.oidc", EXTRA)
    try:
        token = os.environ.get(TOKEN) or oidc.detect_credential()
        if token:
            oidc.IdentityToken(token)
            return str(token)
    except Exception as error:
        # Its detectors raise what their clients raise.
        raise EnvironmentFailure(f"keyless signing: no identity: {line(error)}") from None
    raise EnvironmentFailure(
        "keyless signing: nothing here says who this run is; run it where a workload identity is "
        f"(as in GitHub Actions or Google Cloud), or set {TOKEN}"
    )


@contextmanager
def _online() -> Iterator[None]:
    """Raise EnvironmentFailure for whatever Sigstore's client raises while it is set up."""
    try:
        yield
    except Exception as error:
        raise EnvironmentFailure(f"Sigstore does not answer: {line(error)}") from None
