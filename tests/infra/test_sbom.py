"""The SBOM of an image: what dpkg and Python say is installed there, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from infra.docker.sbom import main, sbom_text

STATUS = """Package: libc6
Status: install ok installed
Architecture: amd64
Version: 2.36-9+deb12u14
Description: GNU C Library: Shared libraries
 Contains the standard libraries.

Package: gone
Status: deinstall ok config-files
Architecture: all
Version: 1.0
"""
RELEASE = 'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nVERSION_ID="12"\nID=debian\n'
SITE = "opt/bipline/lib/python3.11/site-packages"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """The files of an image with two packages of Debian, one of them removed, and two of Python."""
    for name, text in {"var/lib/dpkg/status": STATUS, "etc/os-release": RELEASE}.items():
        (tmp_path / "image" / name).parent.mkdir(parents=True)
        (tmp_path / "image" / name).write_text(text)
    add(tmp_path / "image", "Zope.Interface", "8.1", "License-Expression: ZPL-2.1\n")
    add(tmp_path / "image", "torch", "2.13.0+cpu", "License: " + "long " * 40 + "\n")
    return tmp_path / "image"


def add(image: Path, name: str, version: str, more: str = "") -> None:
    folder = image / SITE / f"{name}-{version}.dist-info"
    folder.mkdir(parents=True)
    told = f"Metadata-Version: 2.4\nName: {name}\nVersion: {version}\n{more}"
    (folder / "METADATA").write_text(told)


def parts(text: str) -> dict[str, dict[str, Any]]:
    return {each["bom-ref"]: each for each in json.loads(text)["components"]}


def test_it_lists_what_is_installed_and_fits_the_schema(image: Path) -> None:
    text = sbom_text("bipline:1", image, "0" * 64)
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    found = parts(text)
    assert set(found) == {
        "os", "pkg:deb/debian/libc6@2.36-9%2Bdeb12u14?arch=amd64&distro=debian-12",
        "pkg:pypi/torch@2.13.0%2Bcpu", "pkg:pypi/zope-interface@8.1",
    }  # fmt: skip
    assert found["os"]["version"] == "12"
    [licence] = found["pkg:pypi/zope-interface@8.1"]["licenses"]
    assert licence["license"]["id"] == "ZPL-2.1"
    assert "licenses" not in found["pkg:pypi/torch@2.13.0%2Bcpu"]
    [depends] = [
        each["dependsOn"] for each in json.loads(text)["dependencies"] if each["ref"] == "image"
    ]
    assert set(depends) == set(found)


def test_the_same_image_has_the_same_bytes_and_another_has_another_number(image: Path) -> None:
    first = sbom_text("bipline:1", image)
    assert sbom_text("bipline:1", image) == first
    add(image, "safetensors", "0.7.0")
    numbers = [json.loads(each)["serialNumber"] for each in (first, sbom_text("bipline:1", image))]
    assert numbers[0] != numbers[1]


def test_the_command_writes_it(image: Path, tmp_path: Path) -> None:
    out = tmp_path / "sbom.json"
    assert main([str(image), str(out)]) == 0
    assert out.read_text() == sbom_text(str(image), image)


@pytest.mark.parametrize(
    ("given", "said", "code"),
    [
        (("{image}",), "usage: python -m infra.docker.sbom IMAGE OUT", 2),
        (("{image}/opt", "{image}/out.json"), "no files of an image", 2),
        (("{image}", "{image}/absent/out.json"), "make it first", 2),
    ],
)
def test_bad_input_is_one_line(
    image: Path, capsys: pytest.CaptureFixture[str], given: tuple[str, ...], said: str, code: int
) -> None:
    assert main([each.format(image=image) for each in given]) == code
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and said in line
    assert not list(image.rglob("out.json"))


def test_where_podman_is_missing_that_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["bipline:1", str(tmp_path / "out.json")]) == 3
    assert "podman is not installed" in capsys.readouterr().err
