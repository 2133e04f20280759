"""Bundled files: one path for a checkout and for a wheel, and in a checkout no second copy."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from bipline.base.bundled import BUNDLED, bundled

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["configs/demo.yaml", "assets", "assets/reference-llm"])
def test_in_a_checkout_it_is_the_checkouts_own(name: str) -> None:
    assert bundled(name) == ROOT / name


def test_what_is_not_bundled_is_an_error() -> None:
    with pytest.raises(FileNotFoundError):
        bundled("configs/no-such.yaml")


@pytest.mark.parametrize("folder", ["assets", "configs"])
def test_the_repository_holds_no_copies(folder: str) -> None:
    assert (BUNDLED / folder).readlink() == Path("..", "..", folder)


def test_the_wheel_carries_every_bundled_file() -> None:
    """The patterns of pyproject.toml match all that is bundled but what made the assets."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["bipline"]
    named = [p.removeprefix("bundled/") for p in patterns if p.startswith("bundled/")]
    carried = {path for pattern in named for path in ROOT.glob(pattern) if path.is_file()}
    there = {path for folder in ("assets", "configs") for path in (ROOT / folder).rglob("*.*")}
    makers = {ROOT / "assets" / name for name in ("README.md", "build_assets.py", "sampling.py")}
    assert carried == {path for path in there if path.suffix != ".pyc"} - makers
