"""``bipline verify`` and ``bipline sign``: is every byte still there, and whose word is it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bipline.base.printable import printable

DIRECTORY = typer.Argument(help="a model directory or package", show_default=False)


def verify(
    directory: Annotated[Path, DIRECTORY],
    key: Annotated[
        Path | None, typer.Option(help="public key (PEM) that must have signed it")
    ] = None,
    digest: Annotated[
        str | None, typer.Option(help="the digest that a registry keeps of it")
    ] = None,
) -> None:
    """Re-hash every file of a directory; say what vouches for that."""
    from bipline.delivery.signature import is_signed
    from bipline.delivery.vouching import verify as verify_all

    verified = verify_all(directory, key, digest)
    manifest = verified.manifest
    size = manifest.total_bytes / 1e6
    typer.echo(printable(f"{directory}: {len(manifest.files)} files, {size:.1f} MB, all as listed"))
    told = [f"signed by {key}"] if key else []
    told += ["as the digest that was given"] if digest else []
    if not told:
        signed = "signed, by whom only --key PUB tells" if is_signed(directory) else "unsigned"
        told = [f"{signed}: compare it with the one a registry keeps"]
    typer.echo(printable(f"digest {manifest.digest} ({'; '.join(told)})"))
    for line in verified.told:
        typer.echo(printable(line))


def sign(
    directory: Annotated[Path, DIRECTORY],
    key: Annotated[Path, typer.Option(help="private elliptic curve key (PEM)", show_default=False)],
) -> None:
    """Sign the manifest of a directory by a private key, and that of its lineage.

    The directory is verified first; a signature lies beside its manifest.
    """
    from bipline.face import api

    manifest = api.sign(directory, key)
    typer.echo(printable(f"{directory}: digest {manifest.digest} signed by {key}"))
