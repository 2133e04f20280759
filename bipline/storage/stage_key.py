"""One key per stage: equal keys mean that running the stage again would give equal bytes.

A key is made of the digests of the stage's inputs, its own settings, what it computes on, the
meaning of the code its core modules can reach, and the numerics (library versions, threads).
The code digest follows imports inside this project only, so an edit of the report never
re-scores a model. It reads what code does and not how it is written: comments, docstrings and
formatting do not count. It may differ between minor versions of Python.
"""

from __future__ import annotations

import ast
import os
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bipline.storage.digests import digest_bytes, digest_file, digest_json, digest_listing

# The folder that holds the package: a checkout, or where it is installed.
PROJECT_ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "bipline"
# Files beside a module that it reads: tables and templates.
DATA_SUFFIXES = (".json", ".j2")
# Modules whose text goes into a pruned model as it stands, so that every byte of it counts.
SHIPPED_MODULES = "modeling_per_layer*.py"
# Tables of names, each for a module: a stage's key follows the module that its name stands for, so
# a line more changes no result that there is.
REGISTERS = ("bipline.settings.method_names",)
# Libraries whose version can change a stage's numbers or bytes.
NUMERIC_LIBRARIES = (
    "torch", "transformers", "tokenizers", "safetensors", "datasets", "lm_eval", "peft",
)  # fmt: skip


@dataclass(frozen=True)
class _Code:
    """A module as a key sees it: the digest of its meaning, and the modules that it imports."""

    meaning: str
    imports: frozenset[str]


class _Running(ast.NodeTransformer):
    """Leaves of a module what runs: no docstrings, nothing that type checkers alone read."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        """Drop a text that stands for itself: it does nothing."""
        text = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return None if text else self.generic_visit(node)

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
        """Keep of ``if TYPE_CHECKING`` what runs otherwise."""
        self.generic_visit(node)
        name = getattr(node.test, "id", None) or getattr(node.test, "attr", None)
        return node.orelse if name == "TYPE_CHECKING" else node


def _running(source: str) -> ast.AST:
    """The syntax tree of what runs of a source text."""
    tree: ast.AST = _Running().visit(ast.parse(source))
    return tree


def module_file(name: str, root: Path = PROJECT_ROOT) -> Path | None:
    """The source file of a module of this project, or None when it is not one of ours."""
    base = root.joinpath(*name.split("."))
    for candidate in (base.with_suffix(".py"), base / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


def imported_modules(source: str) -> frozenset[str]:
    """Names of this project's modules that a source text imports when it runs, anywhere in it.

    ``from bipline.a import b`` may name a module or a value, so both readings are given.
    """
    return _imports(_running(source))


def _imports(tree: ast.AST) -> frozenset[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return frozenset(name for name in names if name.split(".")[0] == PACKAGE)


def _code_of(path: Path) -> _Code:
    return _read_code(path, *_version_of(path))


def _version_of(path: Path) -> tuple[int, int]:
    """What changes when a file is edited: files are read once for each."""
    status = path.stat()
    return status.st_mtime_ns, status.st_size


@cache
def _read_code(path: Path, _changed: int, _size: int) -> _Code:
    source = path.read_bytes()
    tree = _running(source.decode("utf-8"))
    shipped = path.match(SHIPPED_MODULES)
    meaning = source if shipped else ast.dump(tree).encode("utf-8", "surrogatepass")
    return _Code(digest_bytes(meaning), _imports(tree))


@cache
def _read_data(path: Path, _changed: int, _size: int) -> str:
    return digest_file(path)


def import_closure(*modules: str, root: Path = PROJECT_ROOT) -> dict[str, Path]:
    """Every file of this project that ``modules`` reach by imports, by module name.

    What a module imports by a name that it computes is not seen: name it beside the others. A
    package above a module counts only where it is imported itself. Raises ModuleNotFoundError
    for a module of ``modules`` that this project does not have.
    """
    closure: dict[str, Path] = {}
    waiting, seen = list(modules), set(modules)
    while waiting:
        name = waiting.pop()
        file = module_file(name, root)
        if file is not None:
            closure[name] = file
            found = _code_of(file).imports - seen
            seen |= found
            waiting += found
        elif name in modules:
            raise ModuleNotFoundError(f"no module {name} in {root}", name=name)
    return closure


def code_digest(*modules: str, root: Path = PROJECT_ROOT) -> str:
    """The digest of what ``modules`` can do: their import closure and the data files beside it.

    A comment, a docstring, another formatting or a line of a register changes nothing. Of data
    files and of the modules that a model carries along every byte counts. Raises
    ModuleNotFoundError as the closure does.
    """
    closure = import_closure(*modules, root=root)
    counted = {name: file for name, file in closure.items() if name not in REGISTERS}
    digests = {name: _code_of(file).meaning for name, file in counted.items()}
    for folder in {file.parent for file in closure.values()}:
        for file in _data_files(folder):
            digests[str(file.relative_to(root))] = _read_data(file, *_version_of(file))
    return digest_listing(digests)


def _data_files(folder: Path) -> Iterator[Path]:
    return (file for file in folder.iterdir() if file.suffix in DATA_SUFFIXES)


@cache
def library_versions() -> dict[str, str]:
    """Versions of the libraries that can change a number; 'absent' when not installed."""
    versions = {}
    for name in NUMERIC_LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "absent"
    return versions


@cache
def processor() -> str:
    """The processor's name: another type may round otherwise."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.machine()


def numerics() -> dict[str, Any]:
    """What besides inputs and code decides the bytes: libraries, processor and threads."""
    threads = os.environ.get("OMP_NUM_THREADS") or os.cpu_count()
    return {
        "libraries": library_versions(),
        "processor": processor(),
        "threads": str(threads),
    }


def stage_key(
    stage: str,
    version: str,
    modules: tuple[str, ...],
    inputs: Mapping[str, str],
    settings: Any,
    computing: Mapping[str, Any] | None,
) -> str:
    """The key of one stage.

    ``modules`` are the core modules it runs, those it imports by name at run time included;
    ``inputs`` maps input names to digests; ``settings`` is the stage's own section as JSON.
    ``computing`` is what can change the last digits of a stage that computes: device type, dtype
    and micro-batch; None for a stage that computes nothing. Raises ModuleNotFoundError for a
    module that is none of ours, and ValueError for settings that JSON cannot hold.
    """
    return digest_json(
        {
            "stage": stage,
            "version": version,
            "inputs": dict(inputs),
            "settings": settings,
            "computing": None if computing is None else dict(computing),
            "code": code_digest(*modules),
            "numerics": numerics(),
        }
    )
