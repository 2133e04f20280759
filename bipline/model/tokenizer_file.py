"""What a ``tokenizer.json`` says: only what is known to be quick, or anything else.

A pattern that backtracks, a replacement that is longer than what it replaces or a number that is
out of place can end the process, fill the memory or take for ever. A tokenizer that is made of
nothing but the parts below does none of it; any other runs in a process of its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bipline.storage.strict_json import parse

# What is put before a text or in place of its parts, of all steps together: they multiply.
LONGEST_CONTENT = 12
# A list of steps, or of the tokens that open and close a text.
LONGEST_LIST = 16
MODELS = ("BPE", "WordLevel")
PARTS = (
    "Sequence", "NFC", "NFD", "NFKC", "NFKD", "Prepend", "Replace", "Split", "ByteLevel",
    "Metaspace", "Digits", "Whitespace", "WhitespaceSplit", "Punctuation", "TemplateProcessing",
    "ByteFallback", "Fuse", "Strip",
)  # fmt: skip
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
OTHERS = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# What families cut text by: their alternatives begin apart, so that no match is tried again.
PATTERNS = (
    WORDS + r"\p{N}" + OTHERS, WORDS + r"\p{N}{1,3}" + OTHERS,
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"\p{N}{1,3}", r"\p{N}", r"\d", r"[0-9]", r"\s+", r"\n",
)  # fmt: skip


def is_plain(file: Path) -> bool:
    """Whether a ``tokenizer.json`` is made of known parts; False where it cannot be read."""
    try:
        content = parse(file.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and _is_plain_model(content) and _is_plain_line(content)


def _is_plain_line(content: dict[str, Any]) -> bool:
    steps = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
    try:
        parts = [content.get(step) for step in steps]
        return all(map(_is_plain_part, parts)) and sum(map(_added, parts)) <= LONGEST_CONTENT
    except RecursionError:
        return False


def _is_plain_model(content: dict[str, Any]) -> bool:
    """Whether tokens are numbered from 0 without a hole, and nothing is drawn at random."""
    model, added = content.get("model"), content.get("added_tokens", [])
    if not isinstance(model, dict) or model.get("type") not in MODELS or model.get("dropout"):
        return False
    vocabulary = model.get("vocab")
    if not isinstance(vocabulary, dict) or not isinstance(added, list):
        return False
    numbers = [*vocabulary.values(), *(each.get("id") for each in added if isinstance(each, dict))]
    return all(type(n) is int for n in numbers) and set(numbers) == set(range(len(set(numbers))))


def _is_plain_part(part: Any) -> bool:
    """Whether a step and all that it is made of are known."""
    if isinstance(part, list):
        return len(part) <= LONGEST_LIST and all(map(_is_plain_part, part))
    if not isinstance(part, dict):
        return True
    if part.get("type", "Sequence") not in PARTS or part.get("Regex", r"\n") not in PATTERNS:
        return False
    replaces_nothing = part.get("type") == "Replace" and part.get("pattern") == {"String": ""}
    return not replaces_nothing and all(map(_is_plain_part, part.values()))


def _added(part: Any) -> int:
    """How many characters a step and all that it is made of put into a text."""
    if isinstance(part, list):
        return sum(map(_added, part))
    if not isinstance(part, dict):
        return 0
    own = sum(len(str(part.get(name, ""))) for name in ("content", "prepend", "replacement"))
    return own + sum(map(_added, part.values()))
