"""Texts as documents: what every command reads that measures, calibrates or trains.

A ``.txt`` file holds documents between lines of ``<|endoftext|>`` (or is one document). JSON
Lines, JSON, CSV and Parquet hold one document a row, under ``text``. ``chat:FILE`` reads rows of
messages instead, for the tokenizer's chat template, or Alpaca's rows of an instruction, an input
and an output. Every row is looked at before one is used.
Perplexity joins documents, calibration keeps them apart.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

from bipline.base.errors import InvalidInput
from bipline.base.extras import check, require
from bipline.base.progress import note
from bipline.storage.rows import (
    Row,
    csv_rows,
    json_lines,
    json_values,
    kind_of,
    names_of,
    parse_json,
    read_text,
    refusal,
)

SEPARATOR = "<|endoftext|>"
CHAT = "chat:"
MESSAGES = "messages"
INSTRUCTION, INPUT, OUTPUT = "instruction", "input", "output"
CHAT_FIELDS = (MESSAGES, INSTRUCTION, INPUT, OUTPUT)
TEXT_SUFFIXES = (".txt", ".jsonl", ".json", ".csv", ".parquet")
READERS: dict[str, Callable[[Path, str], Iterator[Row]]] = {
    ".jsonl": json_lines, ".json": json_values, ".csv": csv_rows,
}  # fmt: skip


class Chat(str):
    """A document of messages: a tokenizer's template makes its text, here it is their contents."""

    messages: list[dict[str, str]]

    def __new__(cls, messages: list[dict[str, str]]) -> Self:
        """The messages are ``{"role": ..., "content": ...}``."""
        chat = super().__new__(cls, "\n".join(message["content"] for message in messages))
        chat.messages = messages
        return chat


class Instruction(Chat):
    """A chat of one question and its answer, from a row in Alpaca's form."""

    instruction: str
    given: str
    answer: str

    def __new__(cls, instruction: str, given: str, answer: str) -> Self:
        """``given`` is what the instruction is about, empty where it says all itself."""
        question = f"{instruction}\n\n{given}" if given else instruction
        messages = [("user", question), ("assistant", answer)]
        chat = super().__new__(cls, [{"role": role, "content": said} for role, said in messages])
        chat.instruction, chat.given, chat.answer = instruction, given, answer
        return chat


def text_file(source: str | Path) -> Path:
    """The file of a text, which may be given as ``chat:FILE``."""
    return Path(str(source).removeprefix(CHAT))


def read_documents(source: str | Path, tell: bool = False) -> list[str]:
    """The documents of a text, in order; ``tell`` says how many rows were left out for null.

    Blank rows stay: the usual WikiText-2 protocol joins them too. Raises InvalidInput with the
    line where a row is no text, and for a file that is missing, not UTF-8, or holds no text.
    """
    path = text_file(source)
    suffix = path.suffix.lower()
    if suffix not in TEXT_SUFFIXES:
        raise InvalidInput(f"{path}: a text is a file of {', '.join(TEXT_SUFFIXES)}")
    chats = str(source).startswith(CHAT)
    if suffix == ".txt":
        documents = _prose(path, chats)
    else:
        found = [_document(path, row, chats) for row in _rows(path, suffix)]
        documents = [document for document in found if document is not None]
        if tell and len(documents) < len(found):
            note(f"{path}: {len(found) - len(documents)} rows whose text is null were left out")
    if not any(document.strip() for document in documents):
        raise InvalidInput(f"{path}: holds no text")
    return documents


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows as JSON Lines, which hold any text unchanged."""
    lines = (json.dumps(row, ensure_ascii=False) for row in rows)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _prose(path: Path, chats: bool) -> list[str]:
    """Documents between separators; a text without one is a document, unchanged to the byte."""
    if chats:
        raise InvalidInput(f"{path}: a chat is a row of messages; give a .jsonl file")
    text = read_text(path, "text file")
    if _is_json(text.strip()):
        raise InvalidInput(f"{path}: holds JSON, which is no prose; call it .jsonl or .json")
    if SEPARATOR not in text:
        return [text]
    documents = (document.strip("\n") for document in text.split(SEPARATOR))
    return [document for document in documents if document.strip()]


def _is_json(text: str) -> bool:
    """Whether a text is a JSON object or list, or begins with a line that is an object."""
    first = text.partition("\n")[0]
    for part, begins in ((first, "{"), (text, ("{", "["))):
        try:
            if part.startswith(begins) and isinstance(parse_json(part), (dict, list)):
                return True
        except ValueError:
            continue
    return False


def _rows(path: Path, suffix: str) -> Iterator[Row]:
    if suffix == ".parquet":
        return _parquet_rows(path)
    return READERS[suffix](path, read_text(path, "text file"))


def _parquet_rows(path: Path) -> Iterator[Row]:
    """Rows of Parquet by the library under ``datasets``; they are counted where lines would be."""
    check("hub", f"{path}: Parquet")
    if not path.is_file():
        raise InvalidInput(f"{path}: no such text file")
    try:
        table = require("pyarrow.parquet", "hub").ParquetFile(path)
        wanted = [name for name in table.schema_arrow.names if name in ("text", *CHAT_FIELDS)]
        if not wanted:
            raise InvalidInput(f"{path}: no column 'text'; it has {table.schema_arrow.names}")
        rows = (row for batch in table.iter_batches(columns=wanted) for row in batch.to_pylist())
        yield from enumerate(rows, start=1)
    except (OSError, ValueError, TypeError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise InvalidInput(f"{path}: not a Parquet file that can be read: {reason}") from None


def _document(path: Path, row: Row, chats: bool) -> str | None:
    """The text of a row, or its chat; None for null."""
    number, value = row
    if not isinstance(value, dict):
        raise refusal(path, number, f'is {kind_of(value)}, not an object with "text"')
    if chats and INSTRUCTION in value and MESSAGES not in value:
        return _instruction(path, number, value)
    chat = f"; a chat is read where it is given as {CHAT}{path.name}"
    name = MESSAGES if MESSAGES in value and (chats or "text" not in value) else "text"
    if name not in value:
        hint = chat if INSTRUCTION in value else ""
        raise refusal(path, number, f'has no "text"; it has {names_of(value)}{hint}')
    if (given := value[name]) is None:
        return None
    if chats:
        return Chat(_messages(path, number, given))
    if isinstance(given, str):
        return given
    hint = chat if isinstance(given, list) else "; leave the row out or give a string"
    raise refusal(path, number, f"has {kind_of(given)} for {name!r}, which is no text{hint}")


def _instruction(path: Path, number: int, row: dict[str, Any]) -> Instruction:
    """A row in Alpaca's form, held to its texts; ``input`` may be missing, null or empty."""
    said = {INSTRUCTION: row[INSTRUCTION], INPUT: row.get(INPUT), OUTPUT: row.get(OUTPUT)}
    if said[INPUT] is None:
        said[INPUT] = ""
    for name, text in said.items():
        if name not in row and name != INPUT:
            raise refusal(path, number, f'has no "{name}"; it has {names_of(row)}')
        if not isinstance(text, str):
            raise refusal(path, number, f"has {kind_of(text)} for {name!r}, which is no text")
        if not text.strip() and name != INPUT:
            raise refusal(path, number, f"has nothing for {name!r}; leave the row out")
    return Instruction(*said.values())


def _messages(path: Path, number: int, given: Any) -> list[dict[str, str]]:
    """The messages of a chat, held to a role and a content each."""
    if not isinstance(given, list) or not given:
        raise refusal(path, number, f"has {kind_of(given)}, not a list of messages, for a chat")
    for message in given:
        if not isinstance(message, dict) or set(message) != {"role", "content"}:
            raise refusal(path, number, 'has a message other than {"role": ..., "content": ...}')
        if not all(isinstance(part, str) for part in message.values()):
            raise refusal(path, number, "has a message whose role or content is no string")
    return given
