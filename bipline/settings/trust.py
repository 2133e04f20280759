"""Trust: whose signatures count for what, and which users may move which alias."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from bipline.base.errors import InvalidInput
from bipline.settings.base import Settings
from bipline.settings.loading import load

Part = Literal["package", "lineage"]
Name = Annotated[str, Field(min_length=1, max_length=200, description="who is meant, for readers")]
CountsFor = Annotated[
    tuple[Part, ...],
    Field(min_length=1, description="what its signature vouches for: package, lineage"),
]
BOTH: tuple[Part, ...] = ("package", "lineage")


class TrustedKey(Settings):
    """A public elliptic curve key."""

    name: Name
    file: str = Field(min_length=1, description="PEM file, relative to the trust file")
    counts_for: CountsFor = BOTH


class TrustedCertificate(Settings):
    """A certificate that issued, directly or by others, the one that signed."""

    name: Name
    file: str = Field(min_length=1, description="PEM file, relative to the trust file")
    counts_for: CountsFor = BOTH


class TrustedIdentity(Settings):
    """Somebody known to an OpenID issuer, by whose token Sigstore signed."""

    name: Name
    identity: str = Field(min_length=1, description="as the certificate has it: mail or address")
    issuer: str = Field(pattern="^https://", description="address of the issuer")
    counts_for: CountsFor = BOTH


class TrustedUser(Settings):
    """A user of a machine or a registry, as the journal names who was logged in."""

    name: Name
    user: str = Field(min_length=1)
    aliases: tuple[str, ...] = Field(
        default=(), description="aliases that the user may move; empty: all"
    )


class TrustSettings(Settings):
    """Everybody who is trusted; where users are named, nobody else may move an alias."""

    keys: tuple[TrustedKey, ...] = ()
    certificates: tuple[TrustedCertificate, ...] = ()
    identities: tuple[TrustedIdentity, ...] = ()
    users: tuple[TrustedUser, ...] = ()

    @model_validator(mode="after")
    def _somebody(self) -> Self:
        if not (self.keys or self.certificates or self.identities or self.users):
            raise ValueError("names nobody: give keys, certificates, identities or users")
        return self


def load_trust(path: Path) -> TrustSettings:
    """Read a trust file; files in it lie relative to it, and are given whole.

    Raises InvalidInput for a file that is none, or one that it names and that is not there.
    """
    found = load(TrustSettings, path)
    placed = {
        kind: tuple(
            each.model_copy(update={"file": str(_there(path, each.file))})
            for each in getattr(found, kind)
        )
        for kind in ("keys", "certificates")
    }
    return found.model_copy(update=placed)


def _there(path: Path, name: str) -> Path:
    file = path.parent / name
    if not file.is_file():
        raise InvalidInput(f"{path}: {file}: no such file")
    return file
