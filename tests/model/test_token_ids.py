"""Tokenizers that run wild: one line and in time, and known ones as they always were."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bipline.base.child import ChildFailure, in_child
from bipline.base.errors import InvalidInput
from bipline.model import token_ids as module
from bipline.model.token_ids import is_guarded, rendered, token_ids
from bipline.model.tokenizer import load_tokenizer
from bipline.model.tokenizer_file import OTHERS, WORDS, is_plain
from bipline.quality.perplexity import text_windows
from bipline.storage.documents import Chat
from tests.conftest import ASSETS
from tests.tiny import tiny_tokenizer

TEXT = "Many things were said of the OLD house by the hill and nobody had lived there since " * 20
CHAT = Chat([{"role": "user", "content": "HI"}])


def split(pattern: str) -> dict[str, Any]:
    part = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {"pre_tokenizer": part}


def replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"normalizer": {"type": "Replace", "pattern": pattern, "content": content}}


def several(count: int) -> dict[str, Any]:
    part = replace({"String": "a"}, "aaaaaaaa")["normalizer"]
    return {"normalizer": {"type": "Sequence", "normalizers": [part] * count}}


def opened_by(count: int) -> dict[str, Any]:
    token = {"id": "<s>", "ids": [0] * count, "tokens": ["<s>"] * count}
    steps = [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    special = {"<s>": token}
    return {
        "post_processor": {
            "type": "TemplateProcessing", "single": steps, "pair": steps, "special_tokens": special,
        }
    }  # fmt: skip


WILD = {
    "overflows": (split(r"Many((\w|\s)+)+!"), "cannot be used"),
    "panics when tried": (split("((.*)*)*x$"), "cannot be used"),
    "no pattern": (split("("), "parenthesis"),
    "nested too deeply": (split("(" * 9000 + ")" * 9000), "depth"),
    "letter to thousand": (replace({"String": "M"}, "ab" * 500), "tokens of 1 characters"),
    "any to thousand": (replace({"Regex": "."}, "ab" * 500), "tokens of 1 characters"),
    "put before": ({"normalizer": {"type": "Prepend", "prepend": "z" * 9000}}, "tokens of 1 ch"),
    "eight to the fourth": (several(4), "characters"),
    "eight to the twelfth": (several(12), "tokenizer cannot be used"),
    "opened by thousands": (opened_by(5000), "tokens of 1 characters"),
    "no unknown token": ({"model": {"type": "WordLevel", "vocab": {}, "unk_token": "?"}}, "UNK"),
    "no map": ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}, "charsmap"),
    "no words": ({"model": {"type": "Unigram", "vocab": [], "unk_id": 0}}, "vocab"),
    "no model": ({"model": {"type": "Oracle"}}, "tokenizer cannot"),
    "no JSON": ({}, "tokenizer cannot"),
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_tokenizer(tmp_path)
    return tmp_path


def changed(folder: Path, changes: dict[str, Any]) -> Path:
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, **changes}) if changes else "{")
    return folder


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bipline.model.tokenizer.SECONDS", 2.0)
    monkeypatch.setattr(module, "SECONDS", 2.0)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("case", WILD)
def test_a_tokenizer_that_runs_wild_is_refused_in_one_line(
    folder: Path, case: str, capfd: pytest.CaptureFixture[str]
) -> None:
    changes, said = WILD[case]
    began = time.monotonic()
    with pytest.raises(InvalidInput) as refusal:
        list(token_ids(load_tokenizer(changed(folder, changes)), [TEXT], special_tokens=True))
    assert said in str(refusal.value)
    assert str(folder) in str(refusal.value)
    assert time.monotonic() - began < 20
    assert "panicked" not in capfd.readouterr().err


USABLE = {
    "words": split(r"\w+|\W"),
    "lazy": split("(?:[^x]*y)?$"),
    "a few before": opened_by(20),
    "one for one": replace({"Regex": "[aeiou]"}, "o"),
}


@pytest.mark.parametrize("case", USABLE)
def test_an_unknown_part_that_behaves_gives_the_ids_of_the_library(folder: Path, case: str) -> None:
    tokenizer = load_tokenizer(changed(folder, USABLE[case]))
    assert is_guarded(tokenizer)
    texts = [TEXT, "", "A"]
    expected = [tokenizer(text)["input_ids"] for text in texts]
    assert list(token_ids(tokenizer, texts, special_tokens=True)) == expected


def test_known_tokenizers_run_here(
    folder: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = [folder, ASSETS / "reference-llm", *(data / "models").glob("*")]
    monkeypatch.delattr("os.fork")
    for model in (each for each in models if (each / "tokenizer.json").is_file()):
        tokenizer = load_tokenizer(model)
        assert not is_guarded(tokenizer)
        expected = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
        assert list(token_ids(tokenizer, [TEXT], special_tokens=False)) == [expected]


@pytest.mark.parametrize(
    ("changes", "plain"),
    [
        (split(WORDS + r"\p{N}{1,3}" + OTHERS), True),
        (split(WORDS + r"\p{N}" + OTHERS), True),
        (split(WORDS + r"\p{N}+" + OTHERS), False),
        (several(1), True),
        (several(2), False),
        (opened_by(2), True),
        (opened_by(17), False),
        ({"decoder": {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": ""}}, False),
        ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Odd"}]}}, False),
        ({"model": []}, False),
        ({"added_tokens": {}}, False),
        ({"added_tokens": [{"id": 10**9, "content": "<s>"}]}, False),
        ({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [], "dropout": 0.5}}, False),
    ],
)
def test_what_is_plain(folder: Path, changes: dict[str, Any], plain: bool) -> None:
    assert is_plain(changed(folder, changes) / "tokenizer.json") is plain


def test_a_part_that_stands_twice_is_not_plain(folder: Path) -> None:
    """Whoever reads it may take the first."""
    file = folder / "tokenizer.json"
    assert is_plain(file)
    file.write_text('{"decoder": {"type": "Odd"},' + file.read_text().lstrip()[1:])
    assert not is_plain(file)


def test_a_text_that_takes_more_memory_than_there_is_is_refused(folder: Path) -> None:
    with pytest.raises(InvalidInput, match=r"1,680 characters takes about .* --max-memory"):
        list(token_ids(load_tokenizer(folder), [TEXT], special_tokens=False, max_memory=1))


def with_template(folder: Path, template: str) -> Any:
    tokenizer = load_tokenizer(folder)
    tokenizer.chat_template = template
    return tokenizer


def test_a_chat_goes_through_the_template(folder: Path) -> None:
    loop = "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}</s>{% endfor %}"
    tokenizer = with_template(folder, loop)
    assert rendered(tokenizer, [CHAT, "AS IT IS"]) == ["<s>user: HI</s>", "AS IT IS"]
    [ids] = token_ids(tokenizer, [CHAT], special_tokens=True)
    assert ids == tokenizer("<s>user: HI</s>", add_special_tokens=False)["input_ids"]
    assert text_windows(tokenizer, [CHAT, CHAT], 16, "none").shape[1] == 16


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    "template",
    [
        None,
        "{{ raise_exception('roles must alternate') }}",
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{{ messages.missing.name }}",
        "{{ ''.__class__.__mro__ }}",
        "{% if",
        "{{ 'x' * 10 ** 12 }}",
    ],
)
def test_a_template_that_fails_is_refused_in_one_line(folder: Path, template: Any) -> None:
    with pytest.raises(InvalidInput, match="the tokenizer cannot be used on this text: "):
        rendered(with_template(folder, template), [CHAT])


ODD = st.sampled_from(
    [None, True, -1, 10**12, 0.5, "", "x" * 9000, "(a+)+$", [], {}, [[]], "\ud800", {"Regex": "("}]
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a JSON value, few of the long lists and vocabularies."""
    keys = list(value) if isinstance(value, dict) else range(len(value))
    inner = [
        place
        for key in list(keys)[:12]
        if isinstance(value[key], (dict, list))
        for place in places(value[key], (*path, key))
    ]
    return [(*path, key) for key in list(keys)[:12]] + inner


@pytest.mark.slow
@settings(max_examples=400, deadline=None)
@given(st.data())
def test_a_changed_tokenizer_is_used_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.getbasetemp() / "changed"
    folder.mkdir(exist_ok=True)
    tiny_tokenizer(folder)
    file = folder / data.draw(st.sampled_from(["tokenizer.json", "tokenizer_config.json"]))
    content = json.loads(file.read_text())
    for _ in range(data.draw(st.integers(1, 2))):
        *path, last = data.draw(st.sampled_from(places(content)))
        inside = content
        for key in path:
            inside = inside[key]
        inside[last] = json.loads(json.dumps(data.draw(ODD)))
    file.write_text(json.dumps(content))
    began = time.monotonic()
    try:
        [ids] = token_ids(load_tokenizer(folder), [TEXT], special_tokens=True)
        assert all(type(number) is int for number in ids)
    except InvalidInput as error:
        assert "\n" not in str(error).strip()
    assert time.monotonic() - began < 20


def ends(signal_or_code: int) -> Callable[[int], bytes]:
    import os

    return lambda item: os._exit(signal_or_code)


@pytest.mark.parametrize(
    ("work", "said"),
    [
        (lambda item: bytes(1 // item), "by zero"),
        (lambda item: time.sleep(60), "does not come to an end"),
        (lambda item: b" " * (1 << 32), "MemoryError"),
        (ends(3), "ends the process"),
    ],
)
def test_a_child_that_fails_is_told(work: Callable[[int], bytes], said: str) -> None:
    with pytest.raises(ChildFailure, match=said):
        list(in_child(work, [(0, 0.5)], 1 << 28))


def test_a_child_gives_back_bytes_of_any_length() -> None:
    sizes = [0, 1, 1 << 20, 3_000_000]
    answers = in_child(lambda size: bytes(size), [(size, 10.0) for size in sizes], 1 << 28)
    assert list(map(len, answers)) == sizes
