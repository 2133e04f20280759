"""The house rules that a machine can read: sizes, docstrings, no pickle, no remote code."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("bipline", "steps", "pipelines", "materializers", "assets", "infra", "benchmarks")
FILES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
# Which function reads the configuration of a command.
LOADERS = {"compress": "load_config", "sweep": "load_sweep"}
LONGEST_FILE = 350
LONGEST_FUNCTION = 60
PICKLES = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_file_fits_in_the_head(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert source.count("\n") <= LONGEST_FILE
    tree = ast.parse(source)
    assert ast.get_docstring(tree), "a module says what it is"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= LONGEST_FUNCTION, f"{node.name}: {length} lines"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_pickle_and_no_code_from_a_model(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        names = [alias.name for alias in getattr(node, "names", []) if hasattr(alias, "name")]
        names.append(getattr(node, "module", None) or "")
        assert not {name.split(".")[0] for name in names} & PICKLES
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in {"torch.load", "torch.save", "eval", "exec"}
            for keyword in node.keywords:
                if keyword.arg == "trust_remote_code":
                    assert ast.unparse(keyword.value) == "False"


def test_every_configuration_opens_with_its_command() -> None:
    files = sorted((ROOT / "configs").glob("*.yaml"))
    assert files
    for path in files:
        first = path.read_text(encoding="utf-8").splitlines()[0]
        assert first.startswith(f"# bipline {pipeline_of(path)} configs/{path.name}")


def pipeline_of(path: Path) -> str:
    """The command that a configuration opens with."""
    words = path.read_text(encoding="utf-8").split(maxsplit=3)
    assert words[2] in LOADERS, path
    return words[2]


def test_every_configuration_is_valid() -> None:
    from bipline.settings import compress as config
    from bipline.settings import sweep as sweep_config

    loads = {"load_config": config.load_config, "load_sweep": sweep_config.load_sweep}
    for path in sorted((ROOT / "configs").glob("*.yaml")):
        loads[LOADERS[pipeline_of(path)]](path)


@pytest.mark.parametrize("pipeline", ["compress", "sweep"])
def test_every_field_of_a_configuration_says_what_it_is(pipeline: str) -> None:
    from bipline.settings.sweep import schema_of

    schema = schema_of(pipeline)
    tables = {schema["title"]: schema, **schema["$defs"]}
    for table, definition in tables.items():
        for name, field in definition["properties"].items():
            assert "description" in field or "$ref" in field, f"{table}.{name}"
