"""Tokenizers: loaded from the model's own files, never with code from the model."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bipline.base.errors import InvalidInput
from bipline.model.side_files import is_tokenizer_file
from bipline.storage.folder import Folder, LocalFolder

# One of these, or the two of the last, makes a tokenizer.
VOCABULARIES = (("tokenizer.json",), ("tokenizer.model",), ("vocab.json", "merges.txt"))


def tokenizer_of(folder: Folder) -> Any:
    """The tokenizer of a model wherever it lies (see :func:`load_tokenizer`)."""
    if isinstance(folder, LocalFolder):
        return load_tokenizer(folder.path)
    with TemporaryDirectory(prefix="bipline-") as copied:
        for name in filter(is_tokenizer_file, folder.names()):
            (Path(copied) / name).parent.mkdir(exist_ok=True)
            (Path(copied) / name).write_bytes(folder.read(name))
        try:
            return load_tokenizer(Path(copied))
        except InvalidInput as error:
            raise InvalidInput(str(error).replace(copied, folder.location)) from error


def load_tokenizer(directory: Path) -> Any:
    """transformers' tokenizer of a model directory.

    Raises InvalidInput when its files are missing or cannot be read.
    """
    from transformers import AutoTokenizer

    if not any(all((directory / name).is_file() for name in each) for each in VOCABULARIES):
        raise InvalidInput(
            f"{directory}: no tokenizer.json and no tokenizer.model, nor vocab.json with merges.txt"
        )
    try:
        return AutoTokenizer.from_pretrained(
            directory, trust_remote_code=False, local_files_only=True
        )
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InvalidInput(f"{directory}: the tokenizer cannot be read: {reason}") from error
