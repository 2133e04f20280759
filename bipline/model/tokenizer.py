"""Tokenizers: loaded from the model's own files, never with code from the model."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bipline.base.child import ChildFailure, in_child
from bipline.base.errors import InvalidInput
from bipline.base.machine import free_memory
from bipline.model.side_files import is_tokenizer_file
from bipline.model.token_ids import GUARDED, SECONDS
from bipline.model.tokenizer_file import is_plain
from bipline.storage.folder import Folder, LocalFolder

# One of these, or the two of the last, makes a tokenizer.
VOCABULARIES = (("tokenizer.json",), ("tokenizer.model",), ("vocab.json", "merges.txt"))
LONGEST_REASON = 300
# Letters, digits, signs, spaces and other scripts: what patterns and replacements are for.
PROBE = "The cat, 1st of 12_000, isn't at C:\\Über. Ürümqi — 東京 🙂\n\n\tdef f(x): return x**2;  "


def tokenizer_of(folder: Folder) -> Any:
    """The tokenizer of a model wherever it lies (see :func:`load_tokenizer`)."""
    if isinstance(folder, LocalFolder):
        return load_tokenizer(folder.path)
    with TemporaryDirectory(prefix="bipline-") as copied:
        for name in filter(is_tokenizer_file, folder.names()):
            (Path(copied) / name).parent.mkdir(exist_ok=True)
            (Path(copied) / name).write_bytes(folder.read(name))
        try:
            tokenizer = load_tokenizer(Path(copied))
        except InvalidInput as error:
            raise InvalidInput(str(error).replace(copied, folder.location)) from error
    tokenizer.name_or_path = folder.location
    return tokenizer


def load_tokenizer(directory: Path) -> Any:
    """transformers' tokenizer of a model directory.

    Raises InvalidInput when its files are missing or cannot be read.
    """
    from transformers import AutoTokenizer

    if not any(all((directory / name).is_file() for name in each) for each in VOCABULARIES):
        raise InvalidInput(
            f"{directory}: no tokenizer.json and no tokenizer.model, nor vocab.json with merges.txt"
        )
    plain = is_plain(directory / "tokenizer.json")
    if not plain:
        _try(directory)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            directory, trust_remote_code=False, local_files_only=True
        )
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # a panic of Rust is no Exception
        reason = " ".join(str(error).split())[:LONGEST_REASON] or type(error).__name__
        if "trust_remote_code" in str(error):
            reason = "it names code of its own, which is never run; name a class of transformers"
        raise InvalidInput(f"{directory}: the tokenizer cannot be read: {reason}") from error
    setattr(tokenizer, GUARDED, not plain)
    return tokenizer


def _try(directory: Path) -> None:
    """Read and use a tokenizer in a child first. Raises InvalidInput where that goes wrong."""
    from tokenizers import Tokenizer

    def used(file: Path) -> bytes:
        if file.is_file():
            Tokenizer.from_file(str(file)).encode(PROBE)
        return b""

    try:
        list(in_child(used, [(directory / "tokenizer.json", SECONDS)], free_memory() // 2))
    except ChildFailure as failure:
        reason = f"the tokenizer cannot be used: {failure}"
        raise InvalidInput(f"{directory}: {reason}") from None
