"""One key per stage: equal keys mean that running the stage again would give equal bytes.

A key is made of the digests of the stage's inputs, its own section of the configuration, the
digest of the code its core module can reach, and the numerics (library versions, threads).
The code digest follows imports inside this project only, so an edit of the report never
re-scores a model.
"""

from __future__ import annotations

import ast
import os
import platform
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bipline.storage.digests import digest_file, digest_json, digest_listing

PROJECT_ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "bipline"
# Files beside a module that it reads: tables and templates.
DATA_SUFFIXES = (".json", ".j2")
# Libraries whose version can change a stage's numbers or bytes.
NUMERIC_LIBRARIES = (
    "torch", "transformers", "tokenizers", "safetensors", "datasets", "lm_eval", "peft",
)  # fmt: skip


def module_file(name: str, root: Path = PROJECT_ROOT) -> Path | None:
    """The source file of a module of this project, or None when it is not one of ours."""
    base = root.joinpath(*name.split("."))
    for candidate in (base.with_suffix(".py"), base / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


@cache
def imported_modules(source: str) -> frozenset[str]:
    """Names of this project's modules that a source text imports, anywhere in it.

    ``from bipline.a import b`` may name a module or a value, so both readings are given.
    """
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return frozenset(name for name in names if name.split(".")[0] == PACKAGE)


def import_closure(*modules: str, root: Path = PROJECT_ROOT) -> dict[str, Path]:
    """Every file of this project that ``modules`` reach by imports, by module name."""
    closure: dict[str, Path] = {}
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        file = module_file(name, root)
        if name in closure or file is None:
            continue
        closure[name] = file
        waiting += imported_modules(file.read_text(encoding="utf-8"))
    return closure


def code_digest(*modules: str, root: Path = PROJECT_ROOT) -> str:
    """The digest of the modules' import closure, data files beside its modules included."""
    files: dict[str, Path] = {}
    for name, file in import_closure(*modules, root=root).items():
        files[name] = file
        beside = (data for suffix in DATA_SUFFIXES for data in file.parent.glob(f"*{suffix}"))
        files.update({f"{name}:{data.name}": data for data in beside})
    return digest_listing({name: digest_file(file) for name, file in files.items()})


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
    modules: tuple[str, ...],
    inputs: Mapping[str, str],
    section: Any,
    step_version: str,
) -> str:
    """The key of one stage.

    ``modules`` are the core modules it runs, those it imports by name at run time included;
    ``inputs`` maps input names to digests, ``section`` is the stage's own configuration as JSON.
    """
    return digest_json(
        {
            "stage": stage,
            "version": step_version,
            "inputs": dict(inputs),
            "section": section,
            "code": code_digest(*modules),
            "numerics": numerics(),
        }
    )
