"""Text files as documents.

A ``.txt`` file holds documents between lines of ``<|endoftext|>`` (or is one document); a
``.jsonl`` file holds one ``{"text": ...}`` a line. Perplexity joins documents, calibration
keeps them apart.
"""

from __future__ import annotations

import json
from pathlib import Path

from bipline.base.errors import InvalidInput

SEPARATOR = "<|endoftext|>"


def read_documents(path: Path) -> list[str]:
    """The documents of a text file, in order.

    Blank rows of JSON Lines stay: the usual WikiText-2 protocol joins them too.
    Raises InvalidInput when the file is missing, not UTF-8, not JSON Lines, or holds no text.
    """
    if not path.is_file():
        raise InvalidInput(f"{path}: no such text file")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InvalidInput(
            f"{path}: not UTF-8 text: {error.reason} at byte {error.start}"
        ) from None
    documents = _json_lines(path, text) if path.suffix == ".jsonl" else _split(text)
    if not any(document.strip() for document in documents):
        raise InvalidInput(f"{path}: holds no text")
    return documents


def _split(text: str) -> list[str]:
    """Documents between separators; a text without one is a document, unchanged to the byte."""
    if SEPARATOR not in text:
        return [text]
    documents = (document.strip("\n") for document in text.split(SEPARATOR))
    return [document for document in documents if document.strip()]


def _json_lines(path: Path, text: str) -> list[str]:
    documents = []
    # Not splitlines: a document may hold U+2028, which that would take for a line's end.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            documents.append(str(json.loads(line)["text"]))
        except (ValueError, KeyError, TypeError):
            raise InvalidInput(f'{path}: line {number} is not {{"text": ...}}') from None
    return documents


def write_documents(path: Path, documents: list[str]) -> None:
    """Write documents as JSON Lines, which holds any text unchanged."""
    lines = (json.dumps({"text": document}, ensure_ascii=False) for document in documents)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
