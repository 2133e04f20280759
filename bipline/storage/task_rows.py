"""Rows of a zero-shot task: a JSON Lines file in which every row is held to what is measured.

Rows are ``query, choices, gold`` (the continuation of the query is chosen), or ``options,
continuation, gold`` as winogrande is scored: the option after which the shared continuation is
likelier. ``gold`` is the place in the list, from 0. A file may as well be a data set as its
authors publish it: :mod:`bipline.quality.zero_shot_data` reads those.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bipline.base.errors import InvalidInput
from bipline.storage.digests import digest_file, digest_listing
from bipline.storage.rows import json_lines, kind_of, names_of, read_text, refusal

# The list that ``gold`` points into, and the text that all of its entries share.
SHARED = {"choices": "query", "options": "continuation"}
# What no published data set of a task calls a column; ``choices`` some do.
OWN = {"query", "options", "continuation", "gold"}
DATA_SUFFIXES = (".jsonl", ".parquet")


def task_place(folder: Path, name: str) -> Path:
    """Where a task lies in a folder: ``NAME.jsonl``, ``NAME.parquet`` or the folder ``NAME``.

    It need not be there; whoever reads it says so.
    """
    files = [folder / f"{name}{suffix}" for suffix in DATA_SUFFIXES]
    return next((place for place in (*files, folder / name) if place.exists()), files[0])


def holds_rows(path: Path) -> bool:
    """Whether a file is one of rows as this module has them, and no published data set.

    What is neither is held to be rows, so that its faults are told by its lines. Raises
    InvalidInput as :func:`read_task_rows` for a first line that cannot be read.
    """
    if path.suffix.lower() != ".jsonl" or path.is_dir():
        return not (path.is_dir() or path.suffix.lower() == ".parquet")
    _, first = next(json_lines(path, read_text(path, "task file")), (0, None))
    return not isinstance(first, dict) or not first or bool(first.keys() & OWN)


def task_digest(path: Path) -> str:
    """The digest of a task's file, or of all files of a folder. Raises OSError."""
    if not path.is_dir():
        return digest_file(path)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return digest_listing({file.relative_to(path).as_posix(): digest_file(file) for file in files})


def read_task_rows(path: Path) -> tuple[str, list[dict[str, Any]]]:
    """Which list the rows hold, ``choices`` or ``options``, and the rows with nothing else.

    Raises InvalidInput with the line of a row that cannot be measured, and for a file without any.
    """
    if path.suffix.lower() != ".jsonl":
        raise InvalidInput(f"{path}: the rows of a task are a .jsonl file")
    found = list(json_lines(path, read_text(path, "task file")))
    if not found:
        raise InvalidInput(f"{path}: holds no row of query, choices and gold")
    first = found[0][1]
    several = "options" if isinstance(first, dict) and "options" in first else "choices"
    rows = []
    for number, row in found:
        try:
            rows.append(_held(row, several))
        except ValueError as error:
            raise refusal(path, number, str(error)) from None
    return several, rows


def _held(row: Any, several: str) -> dict[str, Any]:
    """What is measured of a row. Raises ValueError with what is wrong with it."""
    one = SHARED[several]
    if not isinstance(row, dict):
        raise ValueError(f"is {kind_of(row)}, not an object of {one}, {several} and gold")
    if missing := [name for name in (one, several, "gold") if name not in row]:
        needed = "query, choices, gold or options, continuation, gold"
        raise ValueError(f"lacks {', '.join(missing)}: a row needs {needed}, has {names_of(row)}")
    texts, gold = row[several], row["gold"]
    if not isinstance(texts, list) or len(texts) < 2:
        raise ValueError(f"needs a list of at least two {several}")
    for text in (row[one], *texts):
        if not isinstance(text, str):
            raise ValueError(f"has {kind_of(text)} where {one} and {several} are strings")
    if not all(text.strip() for text in (*texts, row[one] if several == "options" else "-")):
        raise ValueError(f"has a blank text, which cannot be continued or compared; see {several}")
    if type(gold) is not int or not 0 <= gold < len(texts):
        asked = f"the place of the answer is needed, 0 to {len(texts) - 1}"
        raise ValueError(f"has gold {json.dumps(gold)[:30]}; {asked} (-1 has no answer)")
    return {one: row[one], several: texts, "gold": gold}
