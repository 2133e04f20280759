"""Stage keys: the code a stage can reach is in its key, other code is not."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from bipline.storage.stage_key import PROJECT_ROOT, code_digest, import_closure

SCORE = "bipline.compression.score"
PRUNE = "bipline.compression.prune"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    shutil.copytree(PROJECT_ROOT / "bipline", tmp_path / "bipline")
    return tmp_path


def test_closure_follows_imports_down_the_layers() -> None:
    closure = import_closure(SCORE)
    assert {"bipline.model.block_loop", "bipline.storage.digests"} <= closure.keys()
    assert not {name for name in closure if name.startswith(("bipline.delivery", "bipline.face"))}


@pytest.mark.parametrize(
    ("edited", "changed"),
    [
        ("bipline/model/block_loop.py", {SCORE}),
        ("bipline/model/writer.py", {PRUNE}),
        ("bipline/model/families.json", {SCORE, PRUNE}),
        ("bipline/cli.py", set()),
    ],
)
def test_an_edit_changes_exactly_the_keys_that_reach_it(
    checkout: Path, edited: str, changed: set[str]
) -> None:
    before = {module: code_digest(module, root=checkout) for module in (SCORE, PRUNE)}
    with (checkout / edited).open("a", encoding="utf-8") as file:
        file.write("\n")
    after = {module: code_digest(module, root=checkout) for module in (SCORE, PRUNE)}
    assert {module for module in before if before[module] != after[module]} == changed
