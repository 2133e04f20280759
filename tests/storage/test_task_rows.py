"""Task rows: every row can be measured, or the file is refused with the line of one that cannot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bipline.base.errors import InvalidInput
from bipline.model.resolve import resolve_task
from bipline.storage.task_rows import read_task_rows

ASKED = {"query": "the sky is", "choices": ["blue", "loud"], "gold": 0}
BEGUN = {"options": ["Anna", "Berta"], "continuation": "was late.", "gold": 1}
# What stands in a later row, and what the refusal says of it.
WRONG: dict[str, tuple[Any, str]] = {
    "letter": ({**ASKED, "gold": "A"}, 'gold "A"'),
    "digit": ({**ASKED, "gold": "0"}, 'gold "0"'),
    "fraction": ({**ASKED, "gold": 0.0}, "gold 0.0"),
    "true": ({**ASKED, "gold": True}, "gold true"),
    "null": ({**ASKED, "gold": None}, "gold null"),
    "list": ({**ASKED, "gold": [0]}, "gold [0]"),
    "beyond": ({**ASKED, "gold": 2}, "gold 2; the place of the answer is needed, 0 to 1"),
    "unlabelled": ({**ASKED, "gold": -1}, "-1 has no answer"),
    "no gold": ({"query": "a", "choices": ["b", "c"]}, "lacks gold"),
    "no choices": ({"query": "a", "gold": 0}, "lacks choices"),
    "no query": ({"choices": ["b", "c"], "gold": 0}, "lacks query"),
    "other kind": (BEGUN, "lacks query, choices"),
    "one choice": ({**ASKED, "choices": ["blue"]}, "at least two"),
    "none": ({**ASKED, "choices": []}, "at least two"),
    "string": ({**ASKED, "choices": "blue"}, "a list of at least two"),
    "object": ({**ASKED, "choices": {"text": ["a", "b"]}}, "a list of at least two"),
    "empty choice": ({**ASKED, "choices": ["blue", ""]}, "blank"),
    "blank choice": ({**ASKED, "choices": ["blue", " \n"]}, "blank"),
    "number": ({**ASKED, "choices": ["blue", 3]}, "a number where"),
    "query of numbers": ({**ASKED, "query": 3}, "a number where"),
    "no query text": ({**ASKED, "query": None}, "null where"),
    "no row": ([ASKED], "is a list"),
}
BROKEN = {
    "cut": (b'{"query": "a"', "line 2 is not JSON"),
    "surrogate": (rb'{"query": "\ud800", "choices": ["a", "b"], "gold": 0}', "surrogate"),
    "deep": (b"[" * 100_000, "nested too deeply"),
    "digits": (b'{"gold": ' + b"1" * 5000 + b"}", "5000 digits"),
    "twice": (b'{"gold": 0, "gold": 1}', "'gold' stands twice"),
    "zero": (b"\0", "zero byte"),
    "latin-1": (b"\xe9", "not UTF-8"),
}


def written(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def refused(path: Path) -> str:
    """The same words from both doors."""
    said = set()
    for door in (read_task_rows, lambda path: resolve_task(str(path))):
        with pytest.raises(InvalidInput) as refusal:
            door(path)
        said.add(str(refusal.value))
    [line] = said
    assert "\n" not in line
    return line


@pytest.mark.parametrize("case", WRONG)
def test_a_later_row_that_cannot_be_measured_is_refused(case: str, tmp_path: Path) -> None:
    row, said = WRONG[case]
    line = refused(written(tmp_path / "task.jsonl", ASKED, ASKED, row, ASKED))
    assert "task.jsonl: line 3 " in line
    assert said in line


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_row_is_refused(case: str, tmp_path: Path) -> None:
    content, said = BROKEN[case]
    path = tmp_path / "task.jsonl"
    path.write_bytes(json.dumps(ASKED).encode() + b"\n" + content)
    assert said in refused(path)


@pytest.mark.parametrize("content", ["", "\n \n", "\ufeff"])
def test_a_file_without_rows_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "task.jsonl").write_text(content)
    assert "holds no row" in refused(tmp_path / "task.jsonl")


def test_a_folder_and_other_files_are_no_task(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").mkdir()
    assert "this is a directory" in refused(tmp_path / "a.jsonl")
    assert ".jsonl" in refused(written(tmp_path / "task.json", ASKED))


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\n\n"])
@pytest.mark.parametrize(("several", "row"), [("choices", ASKED), ("options", BEGUN)])
def test_rows_are_read_whatever_program_saved_them(
    mark: str, end: str, several: str, row: dict[str, Any], tmp_path: Path
) -> None:
    text = mark + json.dumps({**row, "id": 1}) + end + json.dumps({**row, "id": "x"}) + end
    (tmp_path / "task.jsonl").write_bytes(text.encode())
    assert read_task_rows(tmp_path / "task.jsonl") == (several, [row, row])


ANY = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 3) | st.floats() | st.sampled_from(["a", "", " "]),
    lambda values: st.lists(values, max_size=3),
)
ROWS = st.dictionaries(st.sampled_from(["query", "choices", "gold", "options"]), ANY) | ANY
GOLD = st.integers(-2, 3)
LIKELY = st.fixed_dictionaries(
    {"query": st.text(max_size=2), "choices": st.lists(st.text(max_size=2)), "gold": GOLD}
)


@settings(max_examples=150, deadline=None)
@given(st.lists(LIKELY | ROWS, min_size=1, max_size=3))
def test_any_rows_are_measurable_or_refused(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Any]
) -> None:
    path = written(tmp_path_factory.getbasetemp() / "any.jsonl", *rows)
    try:
        several, found = read_task_rows(path)
    except InvalidInput as error:
        assert str(error).startswith(f"{path}: line ")
        return
    assert len(found) == len(rows)
    for row in found:
        assert type(row["gold"]) is int
        assert row[several][row["gold"]].strip()
