"""Texts: every row is read or refused with its line, the same for whoever reads it."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bipline.base import extras
from bipline.base.errors import InvalidInput
from bipline.base.progress import listening
from bipline.model.resolve import resolve_text
from bipline.storage.documents import CHAT, TEXT_SUFFIXES, Chat, Instruction, read_documents

BOM = b"\xef\xbb\xbf"
CHATTING = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Yes?"}]
ROW, OTHER = b'{"text": "one"}', b'{"text": "two"}'
READ = {
    "plain.txt": (b"one\ntwo\n", ["one\ntwo\n"]),
    "marked.txt": (BOM + b"one", ["one"]),
    "windows.txt": (b"one\r\ntwo\r\n", ["one\ntwo\n"]),
    "old-mac.txt": (b"one\rtwo", ["one\ntwo"]),
    "documents.txt": (b"one\r\n<|endoftext|>\r\ntwo", ["one", "two"]),
    "footnote.txt": (b"[1]\nThe book begins so.", ["[1]\nThe book begins so."]),
    "brace.txt": (b"{curly} words", ["{curly} words"]),
    "CAPITALS.TXT": (b"one", ["one"]),
    "lines.jsonl": (ROW + b"\n\n" + OTHER, ["one", "two"]),
    "marked.jsonl": (BOM + ROW + b"\r\n" + OTHER + b"\r\n", ["one", "two"]),
    "old-mac.jsonl": (ROW + b"\r" + OTHER, ["one", "two"]),
    "null.jsonl": (ROW + b'\n{"text": null}\n' + OTHER, ["one", "two"]),
    "blank.jsonl": (ROW + b'\n{"text": " "}', ["one", " "]),
    "more.jsonl": (b'{"id": [1, NaN], "text": "one"}', ["one"]),
    "pair.jsonl": (rb'{"text": "\ud83d\ude00"}', ["\U0001f600"]),
    "list.json": (b"[\n" + ROW + b",\n" + OTHER + b"\n]\n", ["one", "two"]),
    "lines.json": (ROW + b"\n" + OTHER, ["one", "two"]),
    "one.json": (b'{\n "text": "one"\n}', ["one"]),
    "table.csv": (b'id,text\n1,one\n2,"two, ""2"""\n', ["one", 'two, "2"']),
    "marked.csv": (BOM + b'text\r\n"one\r\nmore"\r\n\r\ntwo\r\n', ["one\nmore", "two"]),
    "long.csv": (b"text\n" + b"x" * 200_000, ["x" * 200_000]),
}  # fmt: skip
REFUSED = {
    "empty.txt": (b"", "holds no text"),
    "blanks.txt": (b" \n\t\n", "holds no text"),
    "mark alone.txt": (BOM, "holds no text"),
    "latin-1.txt": (b"caf\xe9s", "at byte 3"),
    "cut.txt": (b"caf\xc3", "at byte 3"),
    "marked latin-1.txt": (BOM + b"caf\xe9s", "at byte 6"),
    "utf-16.txt": ("one".encode("utf-16"), "UTF-16"),
    "utf-32.txt": ("one".encode("utf-32"), "UTF-16 or UTF-32"),
    "utf-16 unmarked.txt": ("one".encode("utf-16-le"), "zero byte (byte 1)"),
    "weights.txt": (b"\x00\x01\x02", "zero byte"),
    "rows.txt": (ROW + b"\n" + OTHER, "JSON"),
    "list.txt": (b"[" + ROW + b",\n " + OTHER + b"]", "JSON"),
    "pretty.txt": (b'{\n "text": "one"\n}\n', "JSON"),
    "rows.md": (ROW, ".jsonl"),
    "rows.jsonl.gz": (b"\x1f\x8b", ".jsonl"),
    "bare": (b"one", ".txt"),
    "number.jsonl": (ROW + b'\n\n{"text": 3.5}', "line 3 has a number"),
    "bool.jsonl": (ROW + b'\n{"text": true}', "line 2 has true or false"),
    "list.jsonl": (b'{"text": ["one"]}', "line 1 has a list"),
    "object.jsonl": (b'{"text": {"a": 1}}', "line 1 has an object"),
    "chat.jsonl": (json.dumps({"text": CHATTING}).encode(), "chat:chat.jsonl"),
    "messages.jsonl": (json.dumps({"messages": CHATTING}).encode(), "chat:messages.jsonl"),
    "asked.jsonl": (b'{"instruction": "a", "output": "b"}', "is given as chat:asked.jsonl"),
    "other key.jsonl": (b'{"content": "one"}', "has no \"text\"; it has 'content'"),
    "no object.jsonl": (b'["one"]', "line 1 is a list"),
    "string.jsonl": (ROW + b'\n"two"', "line 2 is a string"),
    "null row.jsonl": (b"null", "line 1 is null"),
    "nulls.jsonl": (b'{"text": null}', "holds no text"),
    "broken.jsonl": (ROW + b'\n{"text": "two"', "line 2 is not JSON"),
    "two in a line.jsonl": (ROW + ROW, "line 1 is not JSON: more follows"),
    "twice.jsonl": (b'{"text": "one", "text": "two"}', "key 'text' stands twice"),
    "surrogate.jsonl": (rb'{"text": "\ud800"}', "line 1 holds half a surrogate pair"),
    "surrogate key.jsonl": (rb'{"text": "one", "\uDfff": 1}', "surrogate"),
    "deep.jsonl": (b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
    "digits.jsonl": (b'{"n": ' + b"9" * 5000 + b', "text": "one"}', "a number of 5000 digits"),
    "list.json": (b"[" + ROW + b",\n" + b"3]", "line 2 is a number"),
    "open.json": (b"[" + ROW + b",", "line 1 begins a list that does not end"),
    "apart.json": (b"[" + ROW + b"\n" + OTHER + b"]", "not followed by a comma"),
    "after.json": (b"[" + ROW + b"]\n" + OTHER, "ends before the file does"),
    "no column.csv": (b"id,body\n1,one", "line 2 has no \"text\"; it has 'id', 'body'"),
    "semicolons.csv": (b"id;text\n1;one", "has no \"text\"; it has 'id;text'"),
    "wide.csv": (b'text\none\n"two",2\n', "line 3 has 2 columns"),
    "open quote.csv": (b'text\none\n"two\n', "line 3 is no row of a table"),
    "twice.csv": (b"text,text\n1,2", "line 1 names a column twice"),
    "names alone.csv": (b"text\n", "holds no text"),
    "no.parquet": (b"PAR1 and nothing else", "not a Parquet file"),
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_documents_are_read_whatever_program_saved_them(name: str, tmp_path: Path) -> None:
    content, expected = READ[name]
    (tmp_path / name).write_bytes(content)
    assert read_documents(tmp_path / name) == expected


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("door", [read_documents, lambda path: resolve_text(str(path), path)])
def test_what_is_no_text_is_refused_with_its_line(name: str, door: object, tmp_path: Path) -> None:
    content, said = REFUSED[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidInput) as refusal:
        door(tmp_path / name)  # type: ignore[operator]
    assert name in str(refusal.value)
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("suffix", TEXT_SUFFIXES)
def test_a_folder_and_nothing_are_no_text(suffix: str, tmp_path: Path) -> None:
    folder = tmp_path / f"folder{suffix}"
    folder.mkdir()
    for path in (folder, tmp_path / f"absent{suffix}"):
        with pytest.raises(InvalidInput, match=re.escape(path.name)):
            read_documents(path)


def parquet(path: Path, texts: list[str | None], name: str = "text") -> Path:
    tables = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet").write_table(tables.table({name: texts}), path)
    return path


def test_parquet_is_read_row_by_row(tmp_path: Path) -> None:
    assert read_documents(parquet(tmp_path / "a.parquet", ["one", None, " "])) == ["one", " "]
    with pytest.raises(InvalidInput, match="no column 'text'"):
        read_documents(parquet(tmp_path / "b.parquet", ["one"], "body"))
    with pytest.raises(InvalidInput, match="line 1 has a number"):
        read_documents(parquet(tmp_path / "c.parquet", [3, 4]))  # type: ignore[list-item]


def test_parquet_without_its_extra_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = parquet(tmp_path / "a.parquet", ["one"])
    monkeypatch.setattr(extras, "missing_modules", lambda extra: ["datasets"])
    with pytest.raises(InvalidInput, match=r"pip install 'bipline\[hub\]'"):
        read_documents(path)


def test_rows_that_are_null_are_counted_once_told(tmp_path: Path) -> None:
    class Notes(list[str]):
        note = list.append

    (tmp_path / "a.jsonl").write_text('{"text": null}\n{"text": "one"}\n{"text": null}\n')
    with listening(notes := Notes()):  # type: ignore[arg-type]
        read_documents(tmp_path / "a.jsonl")
        assert not notes
        read_documents(tmp_path / "a.jsonl", tell=True)
    assert len(notes) == 1
    assert "2 rows whose text is null" in notes[0]


@pytest.mark.parametrize("key", ["text", "messages"])
def test_chats_are_read_where_they_are_asked_for(key: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({key: CHATTING, "id": 1}))
    [chat] = read_documents(f"{CHAT}{path}")
    assert isinstance(chat, Chat)
    assert (chat, chat.messages) == ("Hi.\nYes?", CHATTING)


@pytest.mark.parametrize(
    "given",
    [
        "a text", [], 3, ["Hi."], [{"role": "user"}], [{"role": "user", "content": None}],
        [{"role": 1, "content": "Hi."}], [{"role": "user", "content": "Hi.", "tool": "x"}],
        [*CHATTING, {}], {"role": "user", "content": "Hi."},
    ],
)  # fmt: skip
def test_what_is_no_chat_is_refused(given: object, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": CHATTING}) + "\n" + json.dumps({"text": given}))
    with pytest.raises(InvalidInput, match="line 2 has a"):
        read_documents(f"{CHAT}{path}")


ASKED = {"instruction": "Add.", "input": "1, 2", "output": "3"}


@pytest.mark.parametrize("given", ["1, 2", "", None, ...])
@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_instructions_are_chats_of_two(given: Any, suffix: str, tmp_path: Path) -> None:
    """Alpaca's rows, whose ``text`` is not read; an input may be empty, null or missing."""
    path = tmp_path / f"a{suffix}"
    row = {**ASKED, "text": "all of it", "input": given}
    path.write_text(json.dumps({name: each for name, each in row.items() if each is not ...}))
    [chat] = read_documents(f"{CHAT}{path}")
    assert isinstance(chat, Instruction)
    said = given if isinstance(given, str) else ""
    assert (chat.instruction, chat.given, chat.answer) == ("Add.", said, "3")
    question = "Add.\n\n1, 2" if said else "Add."
    assert [each["content"] for each in chat.messages] == [question, "3"]
    assert read_documents(path) == ["all of it"]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"output": None}, "has null for 'output'"), ({"output": " "}, "has nothing for 'output'"),
        ({"output": 3}, "has a number for 'output'"), ({"output": ...}, 'has no "output"; it has'),
        ({"input": ["1"]}, "has a list for 'input'"), ({"instruction": ""}, "has nothing for"),
        ({"instruction": {}}, "has an object for 'instruction'"),
    ],
)  # fmt: skip
def test_an_instruction_that_is_none_is_refused_with_its_line(
    change: dict[str, Any], word: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.jsonl"
    row = {name: each for name, each in {**ASKED, **change}.items() if each is not ...}
    path.write_text(json.dumps(ASKED) + "\n\n" + json.dumps(row))
    with pytest.raises(InvalidInput, match=f"line 3 {word}"):
        read_documents(f"{CHAT}{path}")


TEXTS = st.lists(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r")), max_size=5
)


def in_csv(texts: list[str]) -> str:
    written = csv.writer(buffer := io.StringIO(), quoting=csv.QUOTE_ALL, lineterminator="\n")
    written.writerows([["text"], *([text] for text in texts)])
    return buffer.getvalue()


WRITERS = {
    ".jsonl": lambda texts: "\n".join(json.dumps({"text": text}) for text in texts),
    ".json": lambda texts: json.dumps([{"text": text} for text in texts], indent=1),
    ".csv": in_csv,
}


@settings(max_examples=60, deadline=None)
@given(TEXTS, st.sampled_from(sorted(WRITERS)), st.booleans())
def test_any_texts_come_back_from_any_file(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], suffix: str, marked: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / f"any{suffix}"
    texts = [*texts, "a last one"]
    path.write_bytes(BOM * marked + WRITERS[suffix](texts).encode())
    assert read_documents(path) == texts


PIECES = st.sampled_from(
    [BOM, ROW, OTHER, b"\n", b"\r", b",", b"[", b"]", b"{", b'"text"', b":", b"null", b'"',
     b"9" * 500, rb'"\ud800"', b"\xff", b"\0", b"one", b" ", b"<|endoftext|>"]
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.lists(PIECES, max_size=12), st.sampled_from(TEXT_SUFFIXES), st.sampled_from(["", CHAT]))
def test_any_bytes_are_read_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes], suffix: str, kind: str
) -> None:
    path = tmp_path_factory.getbasetemp() / f"bytes{suffix}"
    path.write_bytes(b"".join(pieces))
    try:
        assert all(isinstance(text, str) for text in read_documents(f"{kind}{path}"))
    except InvalidInput as error:
        assert str(error).startswith(str(path))
        assert "\n" not in str(error)
