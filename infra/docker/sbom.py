"""What an image holds, as CycloneDX 1.6: Debian's packages and Python's distributions.

``python -m infra.docker.sbom IMAGE OUT`` reads the files of an image that podman has; in place of
a name, a folder with the files of one is taken too. No time is in it: the same image has the same
bytes.
"""

from __future__ import annotations

import email
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageMetadata, distributions
from pathlib import Path
from typing import Any

from bipline.base.errors import BiplineError, EnvironmentFailure, InvalidInput
from bipline.base.extras import require
from bipline.delivery.bom import EXTRA, bom_value, checked_text, component, licences
from bipline.storage.directory import write_text

DPKG = "var/lib/dpkg/status"
SITES = ("opt/*/lib/python3*/site-packages", "usr/local/lib/python3*/site-packages")
# A licence that is told by more than its name is a text, which stands in the image itself.
LONGEST_LICENCE = 60


def sbom_text(name: str, root: Path, identity: str | None = None) -> str:
    """The text of the SBOM of an image whose files lie in ``root``; ``identity`` is its sha256.

    Raises InvalidInput where nothing is installed there, Refused where the schema does not take it.
    """
    debian, python = list(_debian(root)), list(_python(root))
    if not debian and not python:
        sites = " or ".join(SITES)
        raise InvalidInput(f"{root}: no files of an image: neither {DPKG} nor packages in {sites}")
    subject = component("container", name, identity, bom_ref="image")
    return checked_text(bom_value(subject, [*debian, *python]), name)


def _debian(root: Path) -> Iterator[Any]:
    """The distribution and its packages, as dpkg lists them."""
    if not (root / DPKG).is_file():
        return
    release = _release(root)
    distro = f"{release.get('ID', 'debian')}-{release.get('VERSION_ID', '')}".rstrip("-")
    yield component("operating-system", release.get("ID", "debian"), bom_ref="os",
                    version=release.get("VERSION_ID"))  # fmt: skip
    for text in (root / DPKG).read_text(encoding="utf-8").split("\n\n"):
        told = email.message_from_string(text.strip())
        if told["Status"] == "install ok installed":
            where = {"arch": told["Architecture"], "distro": distro}
            vendor = release.get("ID", "debian")
            yield _library("deb", vendor, told["Package"], told["Version"], where)


def _release(root: Path) -> dict[str, str]:
    path = root / "etc" / "os-release"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    return dict(re.findall(r'^(\w+)="?([^"\n]*)"?$', text, re.MULTILINE))


def _python(root: Path) -> Iterator[Any]:
    """Distributions by their name, each once in its folder."""
    sites = [str(site) for pattern in SITES for site in sorted(root.glob(pattern))]
    for site in sites:
        found = {
            re.sub(r"[-_.]+", "-", each.metadata["Name"]).lower(): each
            for each in distributions(path=[site])
        }
        for name, each in sorted(found.items()):
            told = licences(_licence(each.metadata))
            yield _library("pypi", None, name, each.version, {}, licenses=told)


def _licence(metadata: PackageMetadata) -> str | None:
    """The expression, else the licence as one line names it, else what the classifiers name."""
    given = metadata.json
    named = str(given.get("license_expression") or given.get("license") or "").strip()
    if named and "\n" not in named and len(named) <= LONGEST_LICENCE:
        return named
    classifiers: Any = given.get("classifier", [])
    told = [each.rpartition(" :: ")[2] for each in classifiers if each.startswith("License ::")]
    return told[0] if told else None


def _library(
    kind: str, vendor: str | None, name: str, version: str, where: dict[str, str], **fields: Any
) -> Any:
    url = require("packageurl", EXTRA).PackageURL(kind, vendor, name, version, where)
    return component("library", name, version=version, purl=url, bom_ref=url.to_string(), **fields)


@contextmanager
def files_of(image: str) -> Iterator[tuple[Path, str | None]]:
    """The folder with an image's files and the image's sha256, None for what is a folder already.

    Raises InvalidInput where podman has no such image, EnvironmentFailure where there is no podman.
    """
    if Path(image).is_dir():
        yield Path(image), None
        return
    if shutil.which("podman") is None:
        raise EnvironmentFailure(f"{image}: podman is not installed, and this is no folder")
    identity = _podman("inspect", "--format", "{{.Id}}", image)
    root = _podman("mount", image)
    try:
        yield Path(root), identity
    finally:
        _podman("unmount", image)


def _podman(verb: str, *arguments: str) -> str:
    ended = subprocess.run(  # noqa: S603
        ["podman", "image", verb, *arguments], capture_output=True, text=True, check=False,  # noqa: S607
    )  # fmt: skip
    if ended.returncode:
        said = ended.stderr.strip().splitlines()[-1:] or ["no reason told"]
        raise InvalidInput(f"{arguments[-1]}: podman image {verb}: {said[0]}")
    return ended.stdout.strip()


def main(arguments: list[str]) -> int:
    """Write the SBOM of an image; gives the exit code."""
    if len(arguments) != 2:
        sys.stderr.write("error: usage: python -m infra.docker.sbom IMAGE OUT\n")
        return InvalidInput.exit_code
    image, out = arguments
    try:
        if not Path(out).absolute().parent.is_dir():
            raise InvalidInput(f"{out}: its folder does not exist; make it first")
        with files_of(image) as (root, identity):
            write_text(Path(out), sbom_text(image, root, identity))
    except BiplineError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
