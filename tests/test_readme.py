"""The README's commands work as written.

Blocks marked ``bash`` are run line by line in a folder that looks like a checkout, those marked
``python`` after them. Blocks marked ``sh`` are shown to the reader and need what a test has not
(``make`` and a fresh machine, or the hub): their configuration files are checked elsewhere, and
``make demo`` is a test of its own.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
LINKED = ("assets", "configs")
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *ROOT.glob("*/README.md")])


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("readme")
    for name in LINKED:
        (path / name).symlink_to(ROOT / name)
    return path


def shell(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        command, shell=True, cwd=folder, text=True,
        env={**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)},
        capture_output=True, check=False,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_commands_run_in_the_order_they_are_shown(folder: Path) -> None:
    commands = [line for block in blocks("bash") for line in block.splitlines() if line.strip()]
    assert commands
    for command in commands:
        outcome = shell(command, folder)
        assert outcome.returncode == 0, f"{command}\n{outcome.stdout}{outcome.stderr}"
    (folder / "shown.py").write_text("\n".join(blocks("python")), encoding="utf-8")
    outcome = shell("python shown.py", folder)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for text, target in re.findall(r"\[([^\]]+)\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        place = (page.parent / name).resolve() if name else page
        assert place.exists(), f"[{text}] leads to {target}, which is not there"
        if anchor:
            assert anchor in anchors(place), f"[{text}] leads to no heading: {target}"


def anchors(page: Path) -> set[str]:
    """The names that GitHub gives to headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_commands_of_make_exist() -> None:
    shown = "".join(blocks("sh"))
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in ("demo", "test", "test-slow", "test-all", "check"):
        assert f"make {target}" in shown
        assert f"\n{target}: " in makefile


def test_every_file_of_the_tree_exists() -> None:
    tree = next(block for block in blocks("text") if "bipline/" in block)
    for name in re.findall(r"^ *([\w.-]+(?:/[\w.-]+)*/?)\s{2,}", tree, re.MULTILINE):
        found = [path for path in (ROOT / name, ROOT / "bipline" / name) if path.exists()]
        assert found, f"the tree shows {name}, which does not exist"


def test_every_dependency_has_its_reason() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = {"core": project["dependencies"], **project["optional-dependencies"]}
    table = re.findall(r"^\| `(\S+)` \| ([a-z0-9, ]+) \| .{10,} \|$", README, re.MULTILINE)
    shown = {(name, group) for name, named in table for group in named.split(", ")}
    del groups["all"]  # names the other extras
    needed = {
        (re.split(r"[\[<>=]", requirement)[0], group)
        for group, requirements in groups.items()
        for requirement in requirements
    }
    assert shown == needed


def test_constraints_pin_every_dependency() -> None:
    files = (ROOT / "constraints.txt", ROOT / "infra" / "kubeflow" / "requirements.txt")
    pins = "".join(each.read_text(encoding="utf-8") for each in files).lower().replace("_", "-")
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for group in (project["dependencies"], *project["optional-dependencies"].values()):
        for requirement in group:
            name = re.split(r"[\[<>=]", requirement)[0].lower().replace("_", "-")
            assert name == "bipline" or f"\n{name}==" in pins, name
