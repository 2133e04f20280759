"""What imports what in this project, read from the sources."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("bipline", "steps", "pipelines", "materializers", "infra", "benchmarks")


def module_of(path: Path) -> str:
    """A file's module; a package's ``__init__`` is the package."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {
    module_of(path): path
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
}  # fmt: skip


def _running(node: ast.AST, functions: bool) -> Iterator[ast.AST]:
    """What runs below a node: nothing for type checkers, and functions only where asked for."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for other in child.orelse:
                yield other
                yield from _running(other, functions)
        elif functions or not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield child
            yield from _running(child, functions)


def imports(path: Path, functions: bool = True) -> set[str]:
    """The modules that a file imports when it runs; without ``functions`` when it is imported.

    ``from a import b`` is ``a.b`` where that is a module of this project, else ``a``.
    """
    names: set[str] = set()
    for node in _running(ast.parse(path.read_text(encoding="utf-8")), functions):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                names.add(inner if inner in FILES else str(node.module))
    return names


def packages(names: set[str]) -> set[str]:
    """The top-level packages of modules."""
    return {name.partition(".")[0] for name in names}


def reached(*modules: str) -> dict[str, set[str]]:
    """What importing ``modules`` imports, all the way down: each of our modules' imports."""
    found: dict[str, set[str]] = {}
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        if name in found or name not in FILES:
            continue
        found[name] = imports(FILES[name], functions=False)
        waiting += [*found[name], *(str(parent) for parent in parents(name))]
    return found


def parents(module: str) -> list[str]:
    """The packages that a module lies in, which run before it."""
    parts = module.split(".")
    return [".".join(parts[:depth]) for depth in range(1, len(parts))]


def circles(edges: Mapping[str, set[str]]) -> list[set[str]]:
    """The strongly connected components of more than one node."""
    below = {node: _below(node, edges) for node in edges}
    around = {frozenset(end for end in below[node] if node in below[end]) for node in edges}
    return [set(circle) for circle in sorted(around, key=sorted) if len(circle) > 1]


def _below(start: str, edges: Mapping[str, set[str]]) -> set[str]:
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        new = edges[waiting.pop()] - seen
        seen |= new
        waiting += new
    return seen
