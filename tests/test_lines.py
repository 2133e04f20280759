"""The count of lines: what is counted, where it counts, and at which commit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.lines import function_lines, is_driving, report, room_of, sources

ROOT = Path(__file__).parents[1]
SOURCE = '''
@decorator
@another
def outer(
    first, second
):
    """A docstring
    of two lines."""

    async def inner():
        return 1
    return inner
'''


def test_a_function_is_counted_without_decorators_and_docstring() -> None:
    assert list(function_lines(SOURCE)) == [("outer", 7), ("inner", 2)]
    assert list(function_lines("def f(): return 1")) == [("f", 1)]


@pytest.mark.parametrize(
    ("name", "room", "driving"),
    [
        ("bipline/cli.py", "bipline", True),
        ("bipline/face/cli.py", "bipline/face", True),
        ("bipline/stages/line.py", "bipline/stages", True),
        ("bipline/quality/comparison/engine.py", "bipline/quality", True),
        ("bipline/quality/evaluate.py", "bipline/quality", False),
        ("bipline/comparison/engine.py", "bipline/comparison", True),
        ("bipline/comparison/report.py", "bipline/comparison", False),
        ("bipline/compression/score.py", "bipline/compression", False),
        ("steps/line.py", "steps", True),
    ],
)
def test_every_file_has_a_room_then_and_now(name: str, room: str, driving: bool) -> None:
    assert (room_of(name), is_driving(name)) == (room, driving)


def test_a_commit_and_the_working_tree_are_counted_each(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", "-C", tmp_path, *who, *arguments], check=True, capture_output=True)

    git("init")
    (tmp_path / "steps").mkdir()
    for name in ("steps/a.py", "steps/b.py", "steps/notes.txt", "c.py"):
        (tmp_path / name).write_text("def f():\n    return 1\n", encoding="utf-8")
    git("add", ".")
    git("commit", "-m", "first")
    (tmp_path / "steps/a.py").write_text("def f():\n\n\n    return 1\n" * 100, encoding="utf-8")
    (tmp_path / "steps/b.py").unlink()
    then, now = (report(sources(tmp_path, commit)) for commit in ("HEAD", None))
    assert "      4  in all" in then
    assert "functions: 2, median 2 lines, longest 2 (steps/b.py:f)" in then
    assert "    400  driving" in now
    assert "files above 350 lines: 1\n    400  steps/a.py" in now


def test_before_there_was_one_line_of_stages() -> None:
    """The figures that the house is measured by; a shallow clone does not have that commit."""
    known = ["git", "-C", ROOT, "cat-file", "-e", "8ac9c21^{commit}"]
    if subprocess.run(known, capture_output=True, check=False).returncode:
        pytest.skip("no history")
    command = [sys.executable, "-m", "benchmarks.lines", "--commit", "8ac9c21"]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "  6,300  driving" in told
    assert " 24,351  in all" in told
