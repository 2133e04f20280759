"""The layers: imports run downward only, and the core knows no orchestrator."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# From the top: a module may import its own layer and those after it.
LAYERS = (
    "face", "comparison", "stages", "delivery", "recovery", "quality", "compression", "model",
    "settings", "values", "storage", "base",
)  # fmt: skip
CORE = {"base", "storage", "values", "settings", "model", "compression"}
KEPT_OUT_OF_CORE = {"zenml", "mlflow", "kfp", "lm_eval", "peft", "boto3", "botocore"}
# The one module that may know S3, and only inside its functions.
S3_MODULE = "bipline.storage.s3_client"
HEAVY = {
    "torch", "transformers", "datasets", "huggingface_hub", "lm_eval", "peft", "mlflow", "zenml",
    "matplotlib",
}  # fmt: skip


def imports(path: Path, anywhere: bool = True) -> set[str]:
    """Module names a file imports, in functions too or at the top level alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = ast.walk(tree) if anywhere else iter(tree.body)
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


def layer_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in LAYERS else "face"


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


FILES = sorted((ROOT / "bipline").rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_run_downward(path: Path) -> None:
    own = LAYERS.index(layer_of(module_of(path)))
    for name in imports(path):
        if name.startswith("bipline."):
            assert LAYERS.index(layer_of(name)) >= own, f"{module_of(path)} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_core_knows_no_orchestrator_and_bipline_no_zenml(path: Path) -> None:
    packages = {name.split(".")[0] for name in imports(path)}
    assert "zenml" not in packages
    assert not packages & {"steps", "pipelines", "materializers"}
    if module_of(path) == S3_MODULE:
        assert packages & KEPT_OUT_OF_CORE == {"boto3", "botocore"}
        packages = {name.split(".")[0] for name in imports(path, anywhere=False)}
    if layer_of(module_of(path)) in CORE:
        assert not packages & KEPT_OUT_OF_CORE


@pytest.mark.parametrize("room", ["steps", "pipelines", "materializers"])
def test_rooms_above_the_core(room: str) -> None:
    allowed = {"steps": {"materializers"}, "pipelines": {"steps", "materializers"}}.get(room, set())
    others = {"steps", "pipelines", "materializers"} - {room} - allowed
    files = sorted((ROOT / room).rglob("*.py"))
    assert files
    for path in files:
        assert not {name.split(".")[0] for name in imports(path)} & others, path


@pytest.mark.parametrize("name", ["face/cli", "settings/compress", "face/console", "__init__"])
def test_the_face_starts_light(name: str) -> None:
    """What ``bipline --help`` and reading a config import, followed all the way down."""
    waiting, seen = [ROOT / "bipline" / f"{name}.py"], set()
    while waiting:
        path = waiting.pop()
        if path in seen or not path.is_file():
            continue
        seen.add(path)
        for module in imports(path, anywhere=False):
            assert module.split(".")[0] not in HEAVY, f"{path} imports {module}"
            if module.startswith("bipline."):
                waiting.append(ROOT.joinpath(*module.split(".")).with_suffix(".py"))
