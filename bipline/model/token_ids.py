"""Token ids of texts, within time and memory whatever a tokenizer's file says.

A tokenizer of known parts (:mod:`.tokenizer_file`) runs here. Any other, and every chat template,
runs in a process of its own that may be late, die or panic, and is told in one line.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from bipline.base.child import ChildFailure, in_child
from bipline.base.errors import BiplineError, InvalidInput
from bipline.base.machine import anonymous_memory
from bipline.model.memory import memory_limit
from bipline.storage.documents import Chat

# The library's own count of a text while it is cut, with the list of ids that it gives.
BYTES_PER_CHARACTER = 200
# The longest that Unicode makes of one character is 18, which may be three bytes each.
MOST_TOKENS = 64
# Ten times slower than the slowest tokenizer in use.
CHARACTERS_PER_SECOND = 50_000
SECONDS = 15.0
# How much of a text is tried first: what multiplies it shows before it is much.
FIRST_CHARACTERS = (1, 8, 64, 1024)
GUARDED = "runs_in_a_child"


def token_ids(
    tokenizer: Any, texts: Sequence[str], special_tokens: bool, max_memory: int | None = None
) -> Iterator[list[int]]:
    """The ids of each text, opened by the tokenizer's own tokens with ``special_tokens``.

    A chat has those of its template alone. Raises InvalidInput for a tokenizer that fails, and
    where a text takes more memory than ``max_memory``, or than there is.
    """
    room = _room(max((len(text) for text in texts), default=0), max_memory)

    def encoded(text: str) -> list[int]:
        return _encoded(tokenizer, text, special_tokens)

    if not is_guarded(tokenizer) and not any(isinstance(text, Chat) for text in texts):
        for text in texts:
            with refusing_failures(tokenizer):
                ids = encoded(text)
            yield ids
        return
    longest = max(texts, key=len, default="").lstrip()
    first = [longest[:size] for size in FIRST_CHARACTERS]

    def answer(text: str) -> bytes:
        return array("q", encoded(text)).tobytes()

    for number, found in enumerate(_guarded(tokenizer, answer, [*first, *texts], room)):
        if number >= len(first):
            yield array("q", found).tolist()


def rendered(tokenizer: Any, documents: Sequence[str]) -> list[str]:
    """Documents as texts: a chat as the tokenizer's template has it, a text as it is.

    Raises InvalidInput for a tokenizer without a template, and for one that fails.
    """
    if not any(isinstance(document, Chat) for document in documents):
        return list(documents)

    def answer(document: str) -> bytes:
        return _text(tokenizer, document).encode()

    return [text.decode() for text in _guarded(tokenizer, answer, documents, memory_limit(None))]


def is_guarded(tokenizer: Any) -> bool:
    """Whether a tokenizer is not of known parts alone."""
    return bool(getattr(tokenizer, GUARDED, False))


def _encoded(tokenizer: Any, text: str, special_tokens: bool) -> list[int]:
    special_tokens = special_tokens and not isinstance(text, Chat)
    text = _text(tokenizer, text)
    ids = tokenizer(text, add_special_tokens=special_tokens, verbose=False)["input_ids"]
    if len(ids) > MOST_TOKENS * (len(text) + 1):
        raise ValueError(f"it makes {len(ids)} tokens of {len(text)} characters")
    return list(ids)


def _text(tokenizer: Any, document: str) -> str:
    if not isinstance(document, Chat):
        return document
    return str(tokenizer.apply_chat_template(document.messages, tokenize=False))


@contextmanager
def refusing_failures(tokenizer: Any) -> Iterator[None]:
    """For the length of the block, whatever a tokenizer raises is bad input."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, MemoryError, BiplineError):
        raise
    except BaseException as error:  # a panic of Rust is no Exception
        raise _refusal(tokenizer, str(error) or type(error).__name__) from None


def _guarded(
    tokenizer: Any, work: Callable[[str], bytes], texts: Sequence[str], room: int
) -> Iterator[bytes]:
    """What ``work`` gives for each text, in a child."""
    items = [(text, SECONDS + len(text) / CHARACTERS_PER_SECOND) for text in texts]
    try:
        yield from in_child(work, items, room)
    except ChildFailure as failure:
        raise _refusal(tokenizer, str(failure)) from None


def _refusal(tokenizer: Any, reason: str) -> InvalidInput:
    place = tokenizer.name_or_path
    return InvalidInput(f"{place}: the tokenizer cannot be used on this text: {reason}")


def _room(characters: int, max_memory: int | None) -> int:
    """Bytes that tokenising may take. Raises InvalidInput where the longest text takes more."""
    need, room = characters * BYTES_PER_CHARACTER, memory_limit(max_memory) - anonymous_memory()
    if need > room:
        raise InvalidInput(
            f"tokenising a text of {characters:,} characters takes about {need / 1e6:,.0f} MB "
            f"of memory, {max(room, 0) / 1e6:,.0f} MB are left; give less text or more --max-memory"
        )
    return room
