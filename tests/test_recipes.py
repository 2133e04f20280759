"""The recipes in ``docs/recipes`` work as written and print what they show."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RECIPES = ROOT / "docs" / "recipes"
NAMES = ("promote", "audit", "scheduled")
# What differs from run to run: digests, counts, times, places.
VARIES = re.compile(r"[0-9a-f]{7,}|(?<=\bby )\w+$|[-+]?\d[\d.,:TZ+-]*|/\S+/|\s+")


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.MULTILINE | re.DOTALL)


def alike(line: str) -> str:
    """A line without what varies."""
    return VARIES.sub(lambda found: " " if found.group().isspace() else "#", line.strip())


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that looks like a checkout. The pages share it, so that stages are found."""
    path = tmp_path_factory.mktemp("recipes")
    for name in ("assets", "configs"):
        (path / name).symlink_to(ROOT / name)
    return path


def test_each_use_has_its_recipe() -> None:
    assert {path.stem for path in RECIPES.glob("*.md")} == set(NAMES)


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_works(name: str, checkout: Path) -> None:
    page = (RECIPES / f"{name}.md").read_text(encoding="utf-8")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
    script = "\n".join(blocks(page, "bash"))
    done = subprocess.run(
        ["bash", "-e", "-c", script], cwd=checkout, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    printed = {alike(line) for line in done.stdout.splitlines()}
    shown = [line for block in blocks(page, "console") for line in block.splitlines()]
    assert shown
    missing = [line for line in shown if line.strip(" .") and alike(line) not in printed]
    assert not missing, done.stdout
