"""Our reading of a safetensors header beside the library's own: no more is accepted than there."""

from __future__ import annotations

from pathlib import Path

from safetensors import deserialize, safe_open

from bipline.base.errors import InvalidInput
from bipline.model.safetensors_header import read_header
from bipline.storage.folder import LocalFile

FLOAT = bytes(4)
# Where we refuse what the library takes, and why nobody who writes such files is known.
STRICTER = {
    "a name stands twice": "the library takes the last one: two readers may see two models",
    "has not exactly the fields": "unknown fields are dropped, and lists taken for objects, there",
    "holds the negative number": "it stands in a field that is dropped there",
    "a shape that no file can hold": "a zero size before sizes beyond 64 bits hides them there",
}

Held = dict[str, tuple[str, tuple[int, ...], bytes]]


def as_file(header: str | bytes, data: bytes = b"", length: int | None = None) -> bytes:
    """A file of this header; ``length`` is what it claims, if that is not the truth."""
    text = header.encode() if isinstance(header, str) else header
    claimed = len(text) if length is None else length
    return claimed.to_bytes(8, "little") + text + data


def put(path: Path, content: bytes) -> None:
    """Write a new file: over an older one, some file systems wait for the disk."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def taken_by_the_library(path: Path) -> bool:
    try:
        with safe_open(path, framework="pt"):
            return True
    except Exception:
        return False


def as_the_library_reads(content: bytes) -> Held:
    return {
        name: (held["dtype"], tuple(held["shape"]), bytes(held["data"]))
        for name, held in deserialize(content)
    }


def as_we_read(path: Path) -> Held:
    content = path.read_bytes()
    return {
        name: (held.dtype, held.shape, content[held.offset : held.offset + held.num_bytes])
        for name, held in read_header(LocalFile(path), str(path)).items()
    }


def refusal_of(path: Path) -> str:
    """Why we refuse a file, or nothing; whatever else is raised fails the test."""
    try:
        read_header(LocalFile(path), str(path))
    except InvalidInput as error:
        message = str(error)
        assert message.isprintable(), "one line that does nothing to a terminal"
        assert message.startswith(f"{path}: not a whole safetensors file: ")
        return message
    return ""


def compare(path: Path, content: bytes) -> None:
    """Nothing that the library refuses is taken, and what is taken is read as it reads it."""
    put(path, content)
    refusal, taken = refusal_of(path), taken_by_the_library(path)
    if not refusal:
        assert taken, content
        assert as_we_read(path) == as_the_library_reads(content)
    elif taken:
        assert any(reason in refusal for reason in STRICTER), refusal
