"""The layers: imports run downward only, in no circle, and the core knows no orchestrator."""

from __future__ import annotations

import subprocess
import sys
from collections import defaultdict

import pytest

from bipline.storage.stage_key import SHIPPED_MODULES
from tests.layers import FILES, ROOT, circles, imports, packages, parents, reached

# From the top: a module may import its own room and those after it.
ROOMS = (
    "face", "watch", "audits", "comparison", "stages", "delivery", "recovery", "quality",
    "compression", "model", "settings", "values", "storage", "base",
)  # fmt: skip
# The public API and ``python -m bipline`` lie above all rooms.
AT_THE_ROOT = {"__init__.py", "__main__.py"}
CORE = {"base", "storage", "values", "settings", "model", "compression"}
KEPT_OUT_OF_CORE = {"zenml", "mlflow", "kfp", "lm_eval", "peft", "boto3", "botocore"}
S3 = {"boto3", "botocore"}
HEAVY = {
    "torch", "transformers", "datasets", "huggingface_hub", "lm_eval", "peft", "mlflow", "zenml",
    "matplotlib",
}  # fmt: skip
OURS = {name: path for name, path in FILES.items() if name.partition(".")[0] == "bipline"}
WITHOUT_TORCH = sorted(
    name for name in OURS if name.startswith(("bipline.settings", "bipline.values", "bipline.base"))
)
# What pruning loads needs no library of training, tables, trackers or clouds.
BESIDE_THE_LINE = {
    "peft", "accelerate", "datasets", "pandas", "pyarrow", "scipy", "lm_eval", "boto3", "mlflow",
    "zenml", "matplotlib",
}  # fmt: skip
LIGHT = ["bipline", "bipline.__main__", "bipline.face.cli", "bipline.settings.loading"]


def room_of(module: str) -> str:
    """The room of a module, empty above all rooms."""
    return module.split(".")[1] if OURS[module].parent != ROOT / "bipline" else ""


def level_of(module: str) -> int:
    room = room_of(module)
    return ROOMS.index(room) if room else -1


def test_every_file_is_in_a_room() -> None:
    at_the_root = {path.name for path in (ROOT / "bipline").glob("*.py")}
    assert at_the_root <= AT_THE_ROOT
    assert {room_of(name) for name in OURS} - {""} <= set(ROOMS)


@pytest.mark.parametrize("module", OURS)
def test_imports_run_downward(module: str) -> None:
    for name in imports(OURS[module]):
        # The version stands in the package's own file, which everything may ask.
        if name in OURS and name != "bipline":
            assert level_of(name) >= level_of(module), f"{module} imports {name}"


@pytest.mark.parametrize("module", OURS)
def test_core_knows_no_orchestrator_and_bipline_no_zenml(module: str) -> None:
    path = OURS[module]
    names = packages(imports(path))
    above = {"steps", "pipelines", "materializers", "infra", "benchmarks", "tests"}
    assert not names & {"zenml", *above}
    if room_of(module) == "storage" and path.name.startswith("s3"):
        names = packages(imports(path, functions=False)) | names - S3
    if room_of(module) in CORE:
        assert not names & KEPT_OUT_OF_CORE
    if not path.match(SHIPPED_MODULES):
        # Keys follow whole names only.
        assert "\nfrom ." not in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("package", ["steps", "pipelines", "materializers", "infra"])
def test_packages_above_bipline(package: str) -> None:
    below = {"steps": {"materializers"}, "pipelines": {"steps", "materializers", "infra"}}
    others = {"steps", "pipelines", "materializers", "infra", "benchmarks"} - {package}
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        assert not packages(imports(path)) & others - below.get(package, set()), path


def test_no_circle_of_files() -> None:
    """A module that imports another inside a function needs it none the less."""
    edges = {name: imports(path) & FILES.keys() - {name} for name, path in FILES.items()}
    assert not circles(edges)


def test_no_circle_of_folders() -> None:
    """A folder and those inside it are one; two folders beside each other never need each other."""
    edges: dict[str, set[str]] = defaultdict(set)
    for path in FILES.values():
        here = path.parent.relative_to(ROOT)
        imported = {FILES[name].parent.relative_to(ROOT) for name in imports(path) & FILES.keys()}
        edges[str(here)] |= {
            str(there)
            for there in imported
            if not here.is_relative_to(there) and not there.is_relative_to(here)
        }
    assert not circles(edges)


def test_circles_are_found() -> None:
    edges = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set(), "e": {"f"}, "f": {"e", "a"}}
    assert circles(edges) == [{"b", "c"}, {"e", "f"}]
    assert circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
    assert parents("a.b.c") == ["a", "a.b"]


@pytest.mark.parametrize("module", [*WITHOUT_TORCH, *LIGHT])
def test_what_starts_light_imports_nothing_heavy(module: str) -> None:
    """What ``bipline --help`` and reading a configuration import, followed all the way down."""
    for name, imported in reached(module).items():
        assert not packages(imported) & HEAVY, f"{module} reaches {name}"


@pytest.mark.parametrize("modules", [WITHOUT_TORCH, LIGHT], ids=["settings and values", "face"])
def test_what_starts_light_loads_nothing_heavy(modules: list[str]) -> None:
    """As above, with what the libraries themselves import."""
    names = [name for name in modules if not name.endswith("__main__")]
    assert not loaded(names) & HEAVY


def test_pruning_loads_what_it_needs() -> None:
    assert not loaded(["bipline.face.api", "bipline.stages.beside"]) & BESIDE_THE_LINE


def loaded(modules: list[str]) -> set[str]:
    """The packages in a new process that imports ``modules``."""
    program = f"import sys, {', '.join(modules)}; print(*sys.modules)"
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return packages(set(ended.stdout.split()))
