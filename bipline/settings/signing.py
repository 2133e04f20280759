"""Settings of a signature: by a private key, by a key with its certificate, or without a key.

They name files, never what a file holds. A password comes from the environment alone.
"""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from bipline.settings.base import Settings

# Names of variables, which hold what no setting may.
PASSWORD = "BIPLINE_SIGNING_PASSWORD"  # noqa: S105
TOKEN = "BIPLINE_IDENTITY_TOKEN"  # noqa: S105


class SignSettings(Settings):
    """Who signs the package; with nothing given nobody does."""

    key: str | None = Field(
        default=None,
        min_length=1,
        description=f"file of a private elliptic curve key (PEM); its password is read from "
        f"{PASSWORD}",
    )
    certificate: str | None = Field(
        default=None, min_length=1, description="file of the key's certificate (PEM)"
    )
    certificate_chain: tuple[str, ...] = Field(
        default=(), description="files of the certificates (PEM) that vouch for it, root last"
    )
    keyless: bool = Field(
        default=False,
        description="by Sigstore, as who the surroundings say that this run is, or the token in "
        f"{TOKEN}",
    )

    @model_validator(mode="after")
    def _one_signer(self) -> Self:
        if self.keyless and self.key:
            raise ValueError("keyless signing takes no key: give one of both")
        if (self.certificate or self.certificate_chain) and not self.key:
            raise ValueError("a certificate signs nothing without its key: give key too")
        if bool(self.certificate) != bool(self.certificate_chain):
            raise ValueError("give certificate and certificate_chain together, up to the root")
        return self

    @property
    def asked(self) -> bool:
        """Whether anybody is to sign."""
        return self.keyless or self.key is not None
