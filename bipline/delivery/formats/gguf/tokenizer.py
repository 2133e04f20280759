"""The tokenizer inside the file: vocabulary, merges or scores, special tokens, chat template.

llama.cpp has an implementation of its own for each kind of tokenizer. Which one a model's
tokenizer is, is read from its parts; one that llama.cpp has not is refused by name, and whether
both give the same token ids is compared on a page of text by the engine itself.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from bipline.base.errors import InvalidInput
from bipline.base.extras import require
from bipline.model.token_ids import token_ids

SPACE = "\u2581"
UNKNOWN_SCORE = -1000.0
# How a word ends in English, as several tokenizers split it off.
_ENDINGS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|"
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# llama.cpp knows the pattern that text is split by under these names and no others.
SPLITS = {
    rf"{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_REST}": "llama-bpe",
    rf"{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_REST}": "qwen2",
    _CASED: "tekken",
}
GPT2, SMOLLM = "gpt-2", "smollm"


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer in llama.cpp's terms. ``model`` is its implementation there.

    ``kinds`` are members of ``gguf.TokenType`` by name, one a token.
    """

    model: str
    tokens: list[str]
    kinds: list[str]
    pre: str = "default"
    scores: list[float] | None = None
    merges: list[str] | None = None
    unknown: int | None = None
    space_prefix: bool = False
    few_spaces: bool | None = None
    character_map: bytes | None = None
    special: dict[str, int] = field(default_factory=dict)
    adds: dict[str, bool] = field(default_factory=dict)
    chat_template: str | None = None


def vocabulary_of(tokenizer: Any, vocab_size: int) -> Vocabulary:
    """A tokenizer of transformers in llama.cpp's terms, filled up to the model's vocabulary.

    Raises InvalidInput, naming the part that llama.cpp has not.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise _unknown(f"class {type(tokenizer).__name__}, which has no tokenizer.json")
    parts = json.loads(backend.to_str())
    kind = parts["model"]["type"]
    if kind not in READERS:
        raise _unknown(f"model {kind}")
    ids = dict(tokenizer.get_vocab())
    if max(ids.values()) >= vocab_size:
        raise InvalidInput(
            f"gguf: the tokenizer has id {max(ids.values())}, above the model's vocabulary of "
            f"{vocab_size}"
        )
    tokens = [f"[PAD{index}]" for index in range(vocab_size)]
    kinds = ["UNUSED"] * vocab_size
    for token, index in ids.items():
        tokens[index], kinds[index] = token, "NORMAL"
    for added in parts["added_tokens"]:
        kinds[added["id"]] = "CONTROL" if added["special"] else "USER_DEFINED"
    found = READERS[kind](parts, tokens, kinds)
    return Vocabulary(**{**vars(found), **_outside(tokenizer)})


def _unknown(what: str) -> InvalidInput:
    return InvalidInput(
        f"gguf: llama.cpp has no tokenizer of {what}; use the model directory itself, with "
        "transformers"
    )


def _outside(tokenizer: Any) -> dict[str, Any]:
    """Special tokens, what is put around a text, and the chat template."""
    special = {
        name: index
        for name in ("bos", "eos", "pad")
        if (index := getattr(tokenizer, f"{name}_token_id", None)) is not None
    }
    (ids,) = token_ids(tokenizer, ["a"], special_tokens=True)
    adds = {
        "bos": bool(ids) and ids[0] == special.get("bos"),
        "eos": len(ids) > 1 and ids[-1] == special.get("eos"),
    }
    template = getattr(tokenizer, "chat_template", None)
    if isinstance(template, dict):
        template = template.get("default")
    return {"special": special, "adds": adds, "chat_template": template}


def _steps(part: dict[str, Any] | None, several: str) -> list[dict[str, Any]]:
    """The steps of a normalizer or pre-tokenizer, whether it is one or a sequence."""
    if part is None:
        return []
    return list(part[several]) if part["type"] == "Sequence" else [part]


def _bpe(parts: dict[str, Any], tokens: list[str], kinds: list[str]) -> Vocabulary:
    splits = _steps(parts["pre_tokenizer"], "pretokenizers")
    if any(step["type"] == "ByteLevel" for step in splits):
        return _byte_level(parts, splits, tokens, kinds)
    if parts["model"]["byte_fallback"]:
        return _sentence_pieces(parts, tokens, kinds)
    if not parts["model"]["merges"]:
        return _characters(parts, tokens, kinds)
    raise _unknown("model BPE that is neither of bytes nor falls back to bytes")


def _merges(parts: dict[str, Any]) -> list[tuple[str, str]]:
    """Merges in their order; older files join the two with a space."""
    merges = parts["model"]["merges"]
    pairs = (m.split(" ", 1) if isinstance(m, str) else m for m in merges)
    return [(first, second) for first, second in pairs]


def _byte_level(
    parts: dict[str, Any], splits: list[dict[str, Any]], tokens: list[str], kinds: list[str]
) -> Vocabulary:
    for step in _steps(parts["normalizer"], "normalizers"):
        # llama.cpp composes no characters; text is nearly always composed.
        if step["type"] != "NFC":
            raise _unknown(f"normalizer {step['type']} before bytes")
    return Vocabulary(
        model="gpt2",
        pre=_split_name(splits),
        tokens=tokens,
        kinds=kinds,
        merges=[" ".join(pair) for pair in _merges(parts)],
    )


def _split_name(splits: list[dict[str, Any]]) -> str:
    """llama.cpp's name for how text is split into words before bytes are merged."""
    bytes_, before = splits[-1], splits[:-1]
    plain = bytes_["type"] == "ByteLevel" and not bytes_["add_prefix_space"]
    if plain and bytes_["use_regex"]:
        if not before:
            return GPT2
        if before == [{"type": "Digits", "individual_digits": True}]:
            return SMOLLM
    elif plain and len(before) == 1 and before[0]["type"] == "Split":
        pattern = before[0]["pattern"].get("Regex")
        if before[0]["behavior"] == "Isolated" and pattern in SPLITS:
            return SPLITS[pattern]
    raise _unknown(f"pre-tokenizer {json.dumps(splits)[:200]}")


def _sentence_pieces(parts: dict[str, Any], tokens: list[str], kinds: list[str]) -> Vocabulary:
    """SentencePiece's BPE: llama.cpp merges by scores, which are the merges' order."""
    ranks: dict[str, int] = {}
    for rank, (first, second) in enumerate(_merges(parts)):
        ranks.setdefault(first + second, rank)
    last = len(ranks)
    return Vocabulary(
        model="llama",
        tokens=tokens,
        kinds=_with_bytes(tokens, _with_unknown(parts, tokens, kinds)),
        scores=[float(-ranks.get(token, last)) for token in tokens],
        unknown=_unknown_id(parts, tokens),
        space_prefix=_space_prefix(parts),
    )


def _with_bytes(tokens: list[str], kinds: list[str]) -> list[str]:
    bytes_ = {f"<0x{value:02X}>" for value in range(256)}
    return ["BYTE" if t in bytes_ else kind for t, kind in zip(tokens, kinds, strict=True)]


def _with_unknown(parts: dict[str, Any], tokens: list[str], kinds: list[str]) -> list[str]:
    unknown = _unknown_id(parts, tokens)
    return ["UNKNOWN" if index == unknown else kind for index, kind in enumerate(kinds)]


def _unknown_id(parts: dict[str, Any], tokens: list[str]) -> int | None:
    model = parts["model"]
    if model["type"] == "Unigram":
        return None if model["unk_id"] is None else int(model["unk_id"])
    token = model.get("unk_token")
    return tokens.index(token) if token in tokens else None


def _space_prefix(parts: dict[str, Any]) -> bool:
    """Whether a text gets a space before it. Raises InvalidInput for a step that is unknown."""
    prefix = False
    for step in _steps(parts["normalizer"], "normalizers"):
        known = step["type"] in ("Prepend", "Replace", "Precompiled", "Strip")
        if not known:
            raise _unknown(f"normalizer {step['type']} before pieces")
        prefix = prefix or step["type"] == "Prepend"
    for step in _steps(parts["pre_tokenizer"], "pretokenizers"):
        if step["type"] != "Metaspace":
            raise _unknown(f"pre-tokenizer {step['type']} before pieces")
        prefix = prefix or step["prepend_scheme"] != "never"
    return prefix


def _unigram(parts: dict[str, Any], tokens: list[str], kinds: list[str]) -> Vocabulary:
    scores = [UNKNOWN_SCORE] * len(tokens)
    for index, (_, score) in enumerate(parts["model"]["vocab"]):
        scores[index] = float(score)
    steps = _steps(parts["normalizer"], "normalizers")
    maps = [s["precompiled_charsmap"] for s in steps if s["type"] == "Precompiled"]
    folded = any(s["type"] == "Replace" and "Regex" in s["pattern"] for s in steps)
    return Vocabulary(
        model="t5",
        tokens=tokens,
        kinds=_with_unknown(parts, tokens, kinds),
        scores=scores,
        unknown=_unknown_id(parts, tokens),
        space_prefix=_space_prefix(parts),
        few_spaces=folded,
        character_map=base64.b64decode(maps[0]) if maps else None,
    )


def _characters(parts: dict[str, Any], tokens: list[str], kinds: list[str]) -> Vocabulary:
    """One token a character: pieces of equal score, none longer than one.

    A space is SentencePiece's sign for one. Of unknown characters in a row llama.cpp makes one
    unknown token.
    """
    normal = [t for t, kind in zip(tokens, kinds, strict=True) if kind == "NORMAL"]
    if any(len(token) != 1 for token in normal) or SPACE in normal:
        raise _unknown(f"model {parts['model']['type']} of whole words")
    if parts["normalizer"] is not None:
        raise _unknown(f"normalizer {parts['normalizer']['type']} before characters")
    return Vocabulary(
        model="t5",
        tokens=[SPACE if each == " " else each for each in tokens],
        kinds=_with_unknown(parts, tokens, kinds),
        scores=[-1.0] * len(tokens),
        unknown=_unknown_id(parts, tokens),
        few_spaces=False,
    )


READERS: dict[str, Callable[[dict[str, Any], list[str], list[str]], Vocabulary]] = {
    "BPE": _bpe,
    "Unigram": _unigram,
    "WordLevel": _characters,
}


def add_vocabulary(writer: Any, vocabulary: Vocabulary) -> None:
    """Write a vocabulary's keys."""
    types = require("gguf", "gguf").TokenType
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types([int(types[kind]) for kind in vocabulary.kinds])
    for add, value in (
        (writer.add_token_scores, vocabulary.scores),
        (writer.add_token_merges, vocabulary.merges),
        (writer.add_unk_token_id, vocabulary.unknown),
        (writer.add_remove_extra_whitespaces, vocabulary.few_spaces),
        (writer.add_precompiled_charsmap, vocabulary.character_map),
        (writer.add_chat_template, vocabulary.chat_template),
    ):
        if value is not None:
            add(value)
    writer.add_add_space_prefix(vocabulary.space_prefix)
    for name, index in vocabulary.special.items():
        getattr(writer, f"add_{name}_token_id")(index)
    for name, asked in vocabulary.adds.items():
        getattr(writer, f"add_add_{name}_token")(asked)
