"""Data sets of tasks as their authors publish them: of a file, of a folder, of the hub.

A file holds the split that is measured. A folder holds splits by their names (``train.jsonl``,
``validation-00000-of-00001.parquet``), or is one that ``datasets`` saved.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bipline.base.errors import InvalidInput
from bipline.base.extras import check, require
from bipline.model.built import one_line
from bipline.storage.directory import atomic_directory
from bipline.storage.rows import json_lines, kind_of, read_text, refusal
from bipline.storage.task_rows import DATA_SUFFIXES

# Files by which ``datasets`` knows what it saved: several splits, or one.
SAVED = ("dataset_dict.json", "state.json")
# The name of the split where a place has one without a name.
ONLY = ""


def read_data_set(path: Path) -> dict[str, Any]:
    """The splits at a place by name, as ``datasets.Dataset`` in memory; one alone may have none.

    Raises InvalidInput for what is not there or cannot be read.
    """
    if not path.exists():
        raise InvalidInput(f"{path}: no such file or folder of a data set")
    if any((path / name).is_file() for name in SAVED):
        return _saved(path)
    if not path.is_dir():
        return {ONLY: _data_set(path, _rows(path))}
    found: dict[str, list[dict[str, Any]]] = {}
    for file in sorted(path.iterdir()):
        if file.suffix.lower() in DATA_SUFFIXES:
            found.setdefault(file.stem.partition("-")[0], []).extend(_rows(file))
    if not found:
        raise InvalidInput(f"{path}: no split in it; give {', '.join(DATA_SUFFIXES)} files")
    return {split: _data_set(path, rows) for split, rows in found.items()}


def write_data_set(folder: Path, splits: Mapping[str, list[dict[str, Any]]]) -> None:
    """Write splits as JSON Lines, whole or not at all."""
    with atomic_directory(folder, "data-set") as writer:
        for split, rows in splits.items():
            lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) for row in rows)
            text = "".join(f"{line}\n" for line in lines)
            (writer.path / f"{split}.jsonl").write_text(text, encoding="utf-8")


def _rows(path: Path) -> list[dict[str, Any]]:
    if path.suffix.lower() == ".parquet":
        return _parquet_rows(path)
    rows = []
    for number, row in json_lines(path, read_text(path, "task file")):
        if not isinstance(row, dict):
            raise refusal(path, number, f"is {kind_of(row)}, not an object of a data set's columns")
        rows.append(row)
    return rows


def _parquet_rows(path: Path) -> list[dict[str, Any]]:
    check("hub", f"{path}: Parquet")
    try:
        table = require("pyarrow.parquet", "hub").ParquetFile(path).read()
        rows: list[dict[str, Any]] = table.to_pylist()
    except (OSError, ValueError, TypeError, NotImplementedError) as error:
        raise InvalidInput(
            f"{path}: not a Parquet file that can be read: {one_line(error)}"
        ) from None
    return rows


def _data_set(path: Path, rows: list[dict[str, Any]]) -> Any:
    if not rows:
        raise InvalidInput(f"{path}: holds no row")
    # ``from_list`` takes the columns of the first row alone.
    columns = list(dict.fromkeys(name for row in rows for name in row))
    try:
        data = {name: [row.get(name) for row in rows] for name in columns}
        return require("datasets", "eval").Dataset.from_dict(data)
    except (ValueError, TypeError, OverflowError) as error:  # Arrow's errors are of these
        reason = f"a column holds values of several kinds: {one_line(error)}"
        raise InvalidInput(f"{path}: {reason}") from None


def _saved(path: Path) -> dict[str, Any]:
    datasets = require("datasets", "eval")
    try:
        # In memory, or the library writes what it derives beside the user's files.
        found = datasets.load_from_disk(str(path), keep_in_memory=True)
    except Exception as error:  # of many types, and all mean the same
        raise InvalidInput(f"{path}: datasets cannot load it: {one_line(error)}") from None
    return dict(found) if isinstance(found, datasets.DatasetDict) else {ONLY: found}
