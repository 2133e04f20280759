"""Stage keys: the meaning of the code a stage can reach is in its key, nothing else of it is."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bipline.storage.stage_key import (
    PROJECT_ROOT,
    SHIPPED_MODULES,
    code_digest,
    import_closure,
    stage_key,
)

SCORE = ("bipline.compression.score",)
FLAP = (*SCORE, "bipline.compression.criteria.flap")
BLOCK_INFLUENCE = (*SCORE, "bipline.compression.criteria.block_influence")
PRUNE = ("bipline.compression.prune",)
EVALUATE = ("bipline.quality.evaluate",)
STAGES = {FLAP, BLOCK_INFLUENCE, PRUNE, EVALUATE}
EVERYTHING = "bipline.face.cli"

SOURCE = '''"""A module."""

from typing import TYPE_CHECKING

from bipline.other import first

if TYPE_CHECKING:
    from bipline.types import Kind

SIZE = 3


class Window:
    """A window."""

    size: int = 2
    """Said of the field."""


@first
def length(count: int, each: float = 1) -> float:
    """How long."""
    total = count * each  # in tokens
    return total if count < SIZE else first("all")
'''
OTHER = "def first(value):\n    return value\n\n\ndef second(value):\n    return value\n"
SAME = {
    "a comment more": ("SIZE = 3", "# Why three.\nSIZE = 3"),
    "a comment less": ("  # in tokens", ""),
    "another docstring": ("How long.", "How long, in tokens."),
    "no docstring": ('    """How long."""\n', ""),
    "another docstring of a class": ('"""A window."""', '"""A window.\n\n    Of tokens.\n    """'),
    "another text of a field": ("Said of the field", "Said of it"),
    "another docstring of the module": ("A module.", "Another module."),
    "blank lines": ("\n\n", "\n\n\n\n"),
    "other line breaks": ("(count: int, each", "(\n    count: int,\n    each"),
    "brackets": ("count * each", "(count * each)"),
    "other quotes": ('"all"', "'all'"),
    "a number written otherwise": ("SIZE = 3", "SIZE = 0x3"),
    "what type checkers read": ("import Kind", "import Sort"),
    "nothing for type checkers": (
        "if TYPE_CHECKING:\n    from bipline.types import Kind\n", ""
    ),
}  # fmt: skip
CHANGED = {
    "an operator": ("count * each", "count + each"),
    "a comparison": ("count < SIZE", "count <= SIZE"),
    "a constant": ("SIZE = 3", "SIZE = 4"),
    "a text": ('"all"', '"al"'),
    "a default": ("float = 1", "float = 2"),
    "a number's type": ("float = 1", "float = 1.0"),
    "a default's type": ("float = 1", "float = True"),
    "another function of a module": ("import first", "import second as first"),
    "a decorator": ("@first\n", ""),
    "an annotation": ("size: int", "size: float"),
    "a statement's place": ("SIZE = 3\n\n\nclass", "class"),
    "an import that runs": ("SIZE = 3", "import json\nSIZE = 3"),
}


def tree_of(folder: Path, **modules: str) -> Path:
    """A project of these modules."""
    (folder / "bipline").mkdir(parents=True)
    for name, source in modules.items():
        (folder / "bipline" / f"{name}.py").write_text(source, encoding="utf-8")
    return folder


def digest_of(folder: Path, source: str, other: str = OTHER) -> str:
    root = tree_of(folder, edited=source, other=other, types="Kind = int\n")
    return code_digest("bipline.edited", root=root)


def edited(old: str, new: str) -> str:
    assert old in SOURCE, "an edit that changes nothing tests nothing"
    return SOURCE.replace(old, new)


@pytest.mark.parametrize("edit", SAME)
def test_how_code_is_written_does_not_count(tmp_path: Path, edit: str) -> None:
    assert digest_of(tmp_path / "a", SOURCE) == digest_of(tmp_path / "b", edited(*SAME[edit]))


@pytest.mark.parametrize("edit", CHANGED)
def test_what_code_does_counts(tmp_path: Path, edit: str) -> None:
    assert digest_of(tmp_path / "a", SOURCE) != digest_of(tmp_path / "b", edited(*CHANGED[edit]))


def test_what_is_imported_counts_and_what_type_checkers_import_does_not(tmp_path: Path) -> None:
    assert digest_of(tmp_path / "a", SOURCE) != digest_of(
        tmp_path / "b", SOURCE, OTHER.replace("return value", "return 1", 1)
    )
    reached = import_closure("bipline.edited", root=tmp_path / "a")
    assert set(reached) == {"bipline.edited", "bipline.other"}


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This package where nothing else of the project is: as a wheel lies in site-packages."""
    root = tmp_path_factory.mktemp("installed")
    skipped = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PROJECT_ROOT / "bipline", root / "bipline", ignore=skipped)
    return root


@pytest.fixture
def checkout(copied: Path, tmp_path: Path) -> Path:
    shutil.copytree(copied / "bipline", tmp_path / "bipline")
    return tmp_path


def test_all_of_the_package_written_otherwise_has_the_same_digest(checkout: Path) -> None:
    """Every docstring another one, every comment gone, every line broken elsewhere."""
    before = code_digest(EVERYTHING, root=checkout)
    for path in import_closure(EVERYTHING, root=checkout).values():
        if path.match(SHIPPED_MODULES):
            continue
        source = path.read_text(encoding="utf-8")
        tree = ast.parse(source)
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                lines = node.body[1:] if ast.get_docstring(node) else node.body
                node.body = [ast.Expr(ast.Constant("Other words.")), *lines]
        path.write_text(f"# Another comment.\n\n\n{ast.unparse(tree)}\n", encoding="utf-8")
        assert path.read_text(encoding="utf-8") != source
    assert code_digest(EVERYTHING, root=checkout) == before


def small_changes(tree: ast.AST) -> Iterator[tuple[ast.AST, str, Any]]:
    """Places in a syntax tree where one small thing can be another."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
            yield node, "value", node.value + 1
        elif isinstance(node, ast.BinOp):
            yield node, "op", ast.Sub() if isinstance(node.op, ast.Add) else ast.Add()
        elif isinstance(node, ast.Compare):
            yield node, "ops", [ast.IsNot() if isinstance(node.ops[0], ast.Is) else ast.Is()]
        elif isinstance(node, ast.arg):
            yield node, "arg", f"{node.arg}_"


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_any_small_change_in_what_a_stage_reaches_changes_its_key(data: st.DataObject) -> None:
    closure = import_closure(*FLAP)
    names = sorted(closure)
    tree = ast.parse(closure[data.draw(st.sampled_from(names))].read_text(encoding="utf-8"))
    changes = list(small_changes(tree))
    unchanged = ast.unparse(tree)
    if changes:
        node, field, value = data.draw(st.sampled_from(changes))
        setattr(node, field, value)
    with tempfile.TemporaryDirectory() as folder:
        roots = [
            tree_of(Path(folder) / name, edited=text)
            for name, text in (("before", unchanged), ("after", ast.unparse(tree)))
        ]
        before, after = (code_digest("bipline.edited", root=root) for root in roots)
    assert (before != after) == bool(changes)


def test_closure_follows_imports_down_the_layers() -> None:
    closure = import_closure(*SCORE)
    assert {"bipline.model.block_loop", "bipline.storage.digests"} <= closure.keys()
    assert not {name for name in closure if name.startswith(("bipline.delivery", "bipline.face"))}


@pytest.mark.parametrize(
    ("edit", "changed"),
    [
        ("bipline/model/block_loop.py", {FLAP, BLOCK_INFLUENCE, EVALUATE}),
        ("bipline/model/writer.py", {PRUNE}),
        ("bipline/model/families/llama.json", STAGES),
        ("bipline/model/builds/decoder.json", STAGES),
        ("bipline/compression/criteria/flap.py", {FLAP}),
        ("bipline/quality/speed.py", {EVALUATE}),
        ("bipline/delivery/report.py", set()),
        ("bipline/delivery/report.html.j2", set()),
        ("bipline/face/cli.py", set()),
        ("bipline/settings/method_names.py", set()),
    ],
)
def test_an_edit_changes_exactly_the_keys_that_reach_it(
    checkout: Path, edit: str, changed: set[tuple[str, ...]]
) -> None:
    before = {modules: code_digest(*modules, root=checkout) for modules in STAGES}
    with (checkout / edit).open("a", encoding="utf-8") as file:
        file.write("\nMORE = 1\n")
    after = {modules: code_digest(*modules, root=checkout) for modules in STAGES}
    assert {modules for modules in before if before[modules] != after[modules]} == changed


def test_of_code_that_a_model_carries_along_every_byte_counts(checkout: Path) -> None:
    before = code_digest(*PRUNE, root=checkout)
    with (checkout / "bipline/model/per_layer/modeling_per_layer.py").open("a") as file:
        file.write("# A comment that goes into every per-layer model.\n")
    assert code_digest(*PRUNE, root=checkout) != before


def test_the_installed_package_has_the_digest_of_the_checkout(copied: Path, tmp_path: Path) -> None:
    asked = (
        "from bipline.storage.stage_key import PROJECT_ROOT, code_digest\n"
        f"print(PROJECT_ROOT, code_digest{FLAP!r})"
    )
    printed = subprocess.run(
        [sys.executable, "-c", asked],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(copied)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert printed.split() == [str(copied.resolve()), code_digest(*FLAP)]


def test_a_module_that_is_not_there_is_an_error() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"bipline\.compression\.scoer"):
        code_digest("bipline.compression.scoer")


KEY: dict[str, Any] = {
    "stage": "score",
    "version": "1",
    "modules": SCORE,
    "inputs": {"model": "aa", "windows": "bb"},
    "settings": {"criterion": "flap", "options": {}},
    "computing": {"device": "cpu", "dtype": "float32", "micro_batch": 4},
}


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("stage", "calibrate"),
        ("version", "2"),
        ("modules", FLAP),
        ("inputs", {"model": "bb", "windows": "aa"}),
        ("settings", {"criterion": "random", "options": {}}),
        ("computing", {**KEY["computing"], "device": "cuda"}),
        ("computing", {**KEY["computing"], "dtype": "bfloat16"}),
        ("computing", {**KEY["computing"], "micro_batch": 8}),
        ("computing", None),
    ],
)
def test_every_part_of_a_stage_is_in_its_key(part: str, value: Any) -> None:
    assert stage_key(**{**KEY, part: value}) != stage_key(**KEY)


def test_the_order_in_which_things_are_named_is_not() -> None:
    turned = {part: dict(reversed(KEY[part].items())) for part in ("inputs", "settings")}
    assert stage_key(**{**KEY, **turned}) == stage_key(**KEY)


def test_threads_and_libraries_are_in_every_key(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = set()
    for threads in ("1", "2"):
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        keys.add(stage_key(**{**KEY, "computing": None}))
    assert len(keys) == 2
