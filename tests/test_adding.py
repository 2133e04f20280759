"""``docs/adding.md`` in a copy of the tree: what the page says to add is added, and runs."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bipline.storage.manifest import verify_directory

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "adding.md").read_text(encoding="utf-8")
COPIED = ("bipline", "docs", "benchmarks")
TESTS = ("__init__.py", "tiny.py")
SAMPLES = ("--samples", "24", "--seqlen", "16")


def parts(page: str) -> list[tuple[str, str, str]]:
    """What the page adds, in order: path, ``python``, ``json`` or ``diff``, text."""
    found, path = [], ""
    pieces = r"^`([\w./]+)`:$|^```(python|diff|json)\n(.*?)^```$"
    for named, kind, text in re.findall(pieces, page, re.MULTILINE | re.DOTALL):
        path = named or path
        if kind:
            found.append((path, kind, text))
    return found


def patched(source: str, diff: str) -> str:
    """A text after a diff without line numbers, whose old lines must stand in it exactly once."""
    lines = diff.splitlines(keepends=True)
    old = "".join(line[1:] for line in lines if line[0] in " -")
    new = "".join(line[1:] for line in lines if line[0] in " +")
    assert source.count(old) == 1, f"these lines do not stand in the file once:\n{old}"
    return source.replace(old, new)


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree with everything added that the page adds."""
    tree = tmp_path_factory.mktemp("adding")
    for name in COPIED:
        ignored = shutil.ignore_patterns("__pycache__", "bundled")
        shutil.copytree(ROOT / name, tree / name, ignore=ignored)
    (tree / "tests").mkdir()
    for name in TESTS:
        shutil.copy(ROOT / "tests" / name, tree / "tests")
    for path, kind, text in parts(PAGE):
        place = tree / path
        if kind != "diff":
            assert not place.exists(), f"{path} is there already"
            place.write_text(text, encoding="utf-8")
        else:
            place.write_text(patched(place.read_text(encoding="utf-8"), text), encoding="utf-8")
    run(tree, "-c", MODELS)
    shutil.copy(ROOT / "assets" / "texts" / "prose.txt", tree / "text.txt")
    return tree


MODELS = """
from pathlib import Path
from tests.tiny import tiny_model
tiny_model(Path("llama"), "llama-gqa")
tiny_model(Path("coder"), "iquestcoder")
"""


def run(tree: Path, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=tree, env=environment, text=True, capture_output=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{arguments}\n{done.stdout}{done.stderr}"
    return done.stdout


def pruned(tree: Path, model: str, out: str, *flags: str) -> dict[str, object]:
    """The plan that ``bipline prune`` made."""
    text = ("--calibration", "text.txt", *SAMPLES) if "magnitude" not in flags else ()
    run(tree, "-m", "bipline", "prune", model, "--out", out, "--ratio", "0.2", *text, *flags)
    verify_directory(tree / out)
    plan: dict[str, object] = json.loads((tree / out / "pruning_plan.json").read_text("utf-8"))
    return plan


def test_the_first_four_are_on_the_page() -> None:
    rooms = {str(Path(path).parent) for path, kind, _ in parts(PAGE) if kind == "python"}
    for room in ("criteria", "allocation", "compensation"):
        assert f"bipline/compression/{room}" in rooms
    assert any(path.startswith("bipline/model/families/") for path, _, _ in parts(PAGE))


@pytest.mark.slow
def test_a_criterion_needs_a_module_and_a_line(copy: Path) -> None:
    plan = pruned(copy, "llama", "by-criterion", "--criterion", "mean-activation")
    assert plan["criterion"] == "mean-activation"


@pytest.mark.slow
def test_an_allocation_needs_a_module_and_a_line(copy: Path) -> None:
    flags = ("--allocation", "linear-increase", "--layout", "per-layer")
    plan = pruned(
        copy, "llama", "by-allocation", "--criterion", "magnitude", *flags,
        "--allocation-option", "spread=4", "--ffn-multiple", "1",
    )  # fmt: skip
    assert (plan["allocation"], plan["allocation_options"]["spread"]) == ("linear-increase", 4.0)  # type: ignore[index]
    first, last = (len(plan["blocks"][place]["ffn_channels"]) for place in (0, -1))  # type: ignore[index]
    assert first > last


@pytest.mark.slow
def test_a_compensation_corrects_by_its_own_name(copy: Path) -> None:
    flags = ("--criterion", "mean-activation", "--compensation", "gain")
    plan = pruned(copy, "llama", "by-compensation", *flags)
    taken = {
        block[kind]["form"]
        for block in plan["compensated"]["blocks"]  # type: ignore[index]
        for kind in ("attention", "ffn")
    }
    assert plan["compensation"] == "gain"
    assert "gain" in taken


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["uniform", "per-layer"])
def test_a_family_needs_a_file(copy: Path, layout: str) -> None:
    flags = ("--layout", layout, *(("--keep-first", "1") if layout == "per-layer" else ()))
    pruned(copy, "coder", f"family-{layout}", "--criterion", "magnitude", *flags)
    config = json.loads((copy / f"family-{layout}" / "config.json").read_text("utf-8"))
    assert config["model_type"].endswith("iquestcoder")
    if layout == "per-layer":
        run(copy, "-m", "bipline", "evaluate", f"family-{layout}", "--text", "text=text.txt")


def test_pages_are_generated(copy: Path) -> None:
    run(copy, "docs/build_methods.py")
    page = (copy / "docs" / "methods" / "mean-activation.md").read_text("utf-8")
    assert page.startswith("# `mean-activation`\n")
    assert (copy / "docs" / "methods" / "allocation-linear-increase.md").is_file()
    index = (copy / "docs" / "methods" / "README.md").read_text("utf-8")
    assert "mean-activation.md" in index and "allocation-linear-increase.md" in index
    others = {path.name for path in (ROOT / "docs" / "methods").iterdir()}
    for name in others - {"README.md"}:
        old, new = ((root / "docs" / "methods" / name).read_text("utf-8") for root in (ROOT, copy))
        assert old == new, f"{name} changed, though its method did not"
