"""The house rules that a machine can read: sizes, words, docstrings, no pickle, no remote code."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import pytest

from benchmarks.lines import function_lines
from bipline.settings.loading import KINDS, load, schema_of

ROOT = Path(__file__).parents[1]
PRODUCT = ("bipline", "steps", "pipelines", "materializers", "infra")
ROOMS = (*PRODUCT, "assets", "benchmarks")
FILES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
LONGEST_FILE = 350
LONGEST_FUNCTION = 60
MEDIAN_FUNCTION = 8
PICKLES = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
# How what a plan keeps is found, and what is done to the weights that stay, have one name each:
# allocation and compensation.
OTHER_WORDS = {"rule", "rules", "form", "forms"}
# Names that mean something else, everywhere ("") or in one file.
ALLOWED_NAMES = {
    ("closed_forms", ""): "mathematics: a solution in closed form",
    ("form", "bipline/values/compensation.py"): "the field of records on disk",
    ("form", "bipline/compression/compensation/fitting.py"): "writes that field",
    ("form", "bipline/delivery/compensation_text.py"): "reads that field",
    ("forms", "bipline/values/comparison.py"): "the field of comparisons on disk",
    ("form", "bipline/quality/zero_shot.py"): "the form of a task's row",
}
# Two classes of one of these names stood beside each other once.
ONE_OF_EACH = ("Windows", "Method")
NO_MODULES = {"methods.py", "gates.py"}


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", [*FILES, *TESTS], ids=name_of)
def test_file_fits_in_the_head(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    length = source.count("\n")
    assert length <= LONGEST_FILE
    if not source:
        assert path.name == "__init__.py"
        return
    assert ast.get_docstring(ast.parse(source)), "a module says what it is"
    for name, lines in function_lines(source):
        assert lines <= LONGEST_FUNCTION, f"{name}: {lines} lines"


def test_most_functions_are_short() -> None:
    paths = (path for path in FILES if path.relative_to(ROOT).parts[0] in PRODUCT)
    lines = [
        lines for path in paths for _, lines in function_lines(path.read_text(encoding="utf-8"))
    ]
    assert median(lines) <= MEDIAN_FUNCTION


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_pickle_and_no_code_from_a_model(path: Path) -> None:
    for node in ast.walk(tree_of(path)):
        names = [alias.name for alias in getattr(node, "names", []) if hasattr(alias, "name")]
        names.append(getattr(node, "module", None) or "")
        assert not {name.split(".")[0] for name in names} & PICKLES
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in {"torch.load", "torch.save", "eval", "exec"}
            for keyword in node.keywords:
                if keyword.arg == "trust_remote_code":
                    assert ast.unparse(keyword.value) == "False"


def identifiers(tree: ast.AST) -> Iterator[str]:
    """Every name in a file: of modules, functions, classes, arguments, fields and variables."""
    for node in ast.walk(tree):
        for field in ("id", "name", "arg", "attr", "asname", "module"):
            name = getattr(node, field, None)
            if isinstance(name, str):
                yield from name.split(".")


def words(identifier: str) -> set[str]:
    """The words of a ``snake_case`` or ``CamelCase`` name, in small letters."""
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", identifier)}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_one_word_for_one_thing(path: Path) -> None:
    said = {name for name in (*identifiers(tree_of(path)), path.stem) if words(name) & OTHER_WORDS}
    allowed = {name for name, where in ALLOWED_NAMES if where in ("", name_of(path))}
    assert not said - allowed, "say allocation or compensation"


def test_words_are_found() -> None:
    tree = ast.parse("from a.rule_module import RULES as b\ndef load(form_: Form): b.usualRule = 1")
    assert {name for name in identifiers(tree) if words(name) & OTHER_WORDS} == {
        "rule_module", "RULES", "form_", "Form", "usualRule"
    }  # fmt: skip
    assert not words("performed_reform_rulers") & OTHER_WORDS


def test_no_second_class_or_module_of_a_name_that_stands_for_one() -> None:
    product = [path for path in FILES if path.relative_to(ROOT).parts[0] in PRODUCT]
    classes = Counter(
        node.name
        for path in product
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.ClassDef)
    )
    assert {name: classes[name] for name in ONE_OF_EACH if classes[name] > 1} == {}
    assert not {name_of(path) for path in product if path.name in NO_MODULES}


def command_of(path: Path) -> str:
    """The command that a configuration opens with."""
    words = path.read_text(encoding="utf-8").split(maxsplit=3)
    assert words[2] in KINDS, path
    return words[2]


def test_every_configuration_opens_with_its_command_and_is_valid() -> None:
    files = sorted((ROOT / "configs").glob("*.yaml"))
    assert files
    for path in files:
        command = command_of(path)
        first = path.read_text(encoding="utf-8").splitlines()[0]
        assert first.startswith(f"# bipline {command} configs/{path.name}")
        load(KINDS[command], path)


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_of_a_configuration_says_what_it_is(kind: str) -> None:
    schema = schema_of(kind)
    tables = {schema["title"]: schema, **schema["$defs"]}
    for table, definition in tables.items():
        for name, field in definition["properties"].items():
            assert "description" in field or "$ref" in field, f"{table}.{name}"
