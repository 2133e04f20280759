"""``--json``: a file that is no earlier result of the command is left as it is by each of them."""

from __future__ import annotations

import ast
import shutil
from pathlib import Path

import pytest

from bipline.base.errors import InvalidInput
from bipline.face import named_places
from bipline.settings.compress import CompressSettings
from bipline.settings.loading import load
from tests.command import contents, run
from tests.faults.test_bad_places import COMMANDS, CONFIGURATION

FACE = Path(named_places.__file__).parent
# What a command writes is named by its words; each is given a file of the user's.
ASKED = {
    **{name: COMMANDS[name] for name in ("prune", "evaluate", "compress", "sweep")},
    "audit": ["audit", "model"],
    "diff": ["diff", "mine.json", "mine.json"],
    "doctor": ["doctor"],
    "export": ["export", "model", "--out", "out", "--state", "state"],
    "history": ["history", "name", "--state", "state"],
    "models": ["models"],
    "promote": ["promote", "name", "--to", "production", "--gate", "lenient", "--state", "state"],
    "recover": [
        "recover", "model", "--text", "text.txt", "--judge", "other.txt", "--out", "out", "--state",
        "state",
    ],
    "rollback": ["rollback", "name@production", "--state", "state"],
    "runs": ["runs", "--state", "state"],
    "schedule list": ["schedule", "list"],
    "speed": ["speed", "model", "--state", "state"],
    "stack": ["stack", "apply", "stack.yaml"],
    "store list": ["store", "list", "--state", "state"],
    "store prune": ["store", "prune", "--state", "state"],
    "watch": ["watch", "watch.yaml", "--once"],
}  # fmt: skip
# Written by a caller that says which; and by what needs an extra of its own, tried below.
ELSEWHERE = {"compile"}


def written_names() -> set[str]:
    """What the command line and the API call their results: the words in calls of write_json."""
    calls = [
        node
        for path in FACE.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "write_json"
    ]
    return {str(each.args[1].value) for each in calls if isinstance(each.args[1], ast.Constant)}


@pytest.fixture
def here(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(llama, tmp_path / "model")
    for name in ("text.txt", "other.txt"):
        (tmp_path / name).write_text("One text. " * 200)
    (tmp_path / "compress.yaml").write_text(f"{CONFIGURATION}allocate: {{ratio: 0.3}}\n")
    (tmp_path / "sweep.yaml").write_text(f"{CONFIGURATION}grid: {{criteria: [magnitude]}}\n")
    (tmp_path / "stack.yaml").write_text("name: mine\ncomponents: {}\n")
    source = "sources: {mine: {folder: ., compress: compress.yaml}}\nstate: state\n"
    (tmp_path / "watch.yaml").write_text(source)
    (tmp_path / "mine.json").write_text('{"mine": 1}')
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_result_is_tried_here() -> None:
    assert written_names() <= set(ASKED) | ELSEWHERE


@pytest.mark.parametrize("command", ASKED)
def test_a_users_file_is_no_result(
    capfd: pytest.CaptureFixture[str], here: Path, command: str
) -> None:
    before = contents(here)
    run(capfd, *ASKED[command], "--json", "mine.json").assert_one_line(2, "mine.json")
    after = {name: data for name, data in contents(here).items() if "/logs/" not in name}
    assert after == before


def test_a_users_file_is_no_compiled_pipeline(here: Path) -> None:
    settings = load(CompressSettings, here / "compress.yaml")
    for name in ("mine.json", "model"):
        with pytest.raises(InvalidInput, match=name):
            named_places.check_compiled(settings, name, None)
