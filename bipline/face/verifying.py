"""``bipline verify`` and ``bipline sign``: is every byte still there, and whose word is it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bipline.base.printable import printable
from bipline.settings.signing import PASSWORD

DIRECTORY = typer.Argument(help="a model directory or package", show_default=False)


def verify(
    directory: Annotated[Path, DIRECTORY],
    key: Annotated[
        Path | None, typer.Option(help="public key (PEM) that must have signed it")
    ] = None,
    certificate_chain: Annotated[
        list[Path] | None,
        typer.Option(help="root certificate (PEM), and others, that its signer's is under"),
    ] = None,
    identity: Annotated[
        str | None, typer.Option(help="who must have signed it without a key; needs --issuer")
    ] = None,
    issuer: Annotated[
        str | None, typer.Option(help="who vouches for that identity, as an https:// address")
    ] = None,
    digest: Annotated[
        str | None, typer.Option(help="the digest that a registry keeps of it")
    ] = None,
) -> None:
    """Re-hash every file of a directory; say what vouches for that."""
    from bipline.delivery.signature import is_signed
    from bipline.delivery.signer import trust_of
    from bipline.delivery.vouching import verify as verify_all

    trust = trust_of(key, tuple(certificate_chain or ()), identity, issuer)
    verified = verify_all(directory, trust, digest)
    manifest = verified.manifest
    size = manifest.total_bytes / 1e6
    typer.echo(printable(f"{directory}: {len(manifest.files)} files, {size:.1f} MB, all as listed"))
    told = [f"signed by {trust}"] if trust else []
    told += ["as the digest that was given"] if digest else []
    if not told:
        signed = "signed, by whom only --key PUB tells" if is_signed(directory) else "unsigned"
        told = [f"{signed}: compare it with the one a registry keeps"]
    typer.echo(printable(f"digest {manifest.digest} ({'; '.join(told)})"))
    for line in verified.told:
        typer.echo(printable(line))


def sign(
    directory: Annotated[Path, DIRECTORY],
    key: Annotated[
        Path | None,
        typer.Option(help=f"private elliptic curve key (PEM); password in {PASSWORD}"),
    ] = None,
    certificate: Annotated[Path | None, typer.Option(help="the key's certificate (PEM)")] = None,
    certificate_chain: Annotated[
        list[Path] | None, typer.Option(help="certificates (PEM) that vouch for it, root last")
    ] = None,
    keyless: Annotated[
        bool, typer.Option("--keyless", help="by Sigstore, as who this run is known to be")
    ] = False,
) -> None:
    """Sign the manifest of a directory, and that of its lineage.

    The directory is verified first; a signature lies beside its manifest.
    """
    from bipline.face import api

    chain = tuple(certificate_chain or ())
    manifest = api.sign(
        directory, key, certificate=certificate, certificate_chain=chain, keyless=keyless
    )
    by = certificate or key or "Sigstore"
    typer.echo(printable(f"{directory}: digest {manifest.digest} signed by {by}"))
