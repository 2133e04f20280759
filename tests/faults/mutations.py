"""Files as nobody meant them: values put where others belong, and bytes that went wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

ODD_VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 3, 2**31, 2**63, 10**9, 10**30, 0.5, -0.0, 1e308, float("nan"),
    float("inf"), "", "x", "NaN", "8", "\ud800", "\0", "../../etc/passwd", "/etc/passwd", "hf:a/b",
    "http://user:secret@nowhere.invalid/x", [], {}, [[]], {"a": {}}, ["x"], [1] * 50, "gelu",
    "\x1b[31m", "[/b]", "=1+1", "x" * 5000,
]  # fmt: skip

Mutation = Callable[[bytes], bytes]


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a JSON value but its root."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()  # noqa: E501  # fmt: skip
    found = []
    for name, part in parts:
        found += [(*path, name), *_places(part, (*path, name))]
    return found


def _changed(value: Any, path: tuple[Any, ...], action: str, odd: Any) -> Any:
    copy = json.loads(json.dumps(value))
    parent = copy
    for name in path[:-1]:
        parent = parent[name]
    if action == "replace":
        parent[path[-1]] = odd
    elif action == "delete":
        del parent[path[-1]]
    elif action == "wrap":
        parent[path[-1]] = [parent[path[-1]]]
    elif isinstance(parent, dict):
        parent["unknown_key"] = odd
    else:
        parent.append(odd)
    return copy


@st.composite
def changed_json(draw: st.DrawFn, text: bytes) -> bytes:
    """A JSON document with one to three places changed; the larger it is, the nearer its top."""
    value = json.loads(text)
    for _ in range(draw(st.integers(1, 3))):
        places = sorted(_places(value), key=len)[:200]
        if not places:
            break
        action = draw(st.sampled_from(["replace", "replace", "delete", "wrap", "add"]))
        odd = draw(st.sampled_from(ODD_VALUES))
        value = _changed(value, draw(st.sampled_from(places)), action, odd)
    return json.dumps(value).encode()


@st.composite
def damaged(draw: st.DrawFn, text: bytes) -> bytes:
    """The bytes of any file, cut, flipped, filled, marked or nested."""
    place = draw(st.integers(0, max(0, len(text) - 1)))
    piece = draw(
        st.binary(min_size=1, max_size=8)
        | st.sampled_from([b"\xef\xbb\xbf", b"\0", b"\xff", b'"\\ud800"', b"[" * 3000, b"9" * 5000])
    )
    action = draw(st.sampled_from(["cut", "overwrite", "insert", "prepend", "empty", "double"]))
    return {
        "cut": text[:place],
        "overwrite": text[:place] + piece + text[place + len(piece) :],
        "insert": text[:place] + piece + text[place:],
        "prepend": piece + text,
        "empty": b"",
        "double": text + text,
    }[action]
