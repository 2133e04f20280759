"""Tokenizers: loaded from the model's own files, never with code from the model."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bipline.base.errors import InvalidInput
from bipline.storage.folder import Folder, LocalFolder

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)


def tokenizer_of(folder: Folder) -> Any:
    """The tokenizer of a model wherever it lies (see :func:`load_tokenizer`)."""
    if isinstance(folder, LocalFolder):
        return load_tokenizer(folder.path)
    with TemporaryDirectory(prefix="bipline-") as copied:
        for name in set(TOKENIZER_FILES) & set(folder.names()):
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

    if not any((directory / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        raise InvalidInput(f"{directory}: no tokenizer.json and no tokenizer.model")
    try:
        return AutoTokenizer.from_pretrained(
            directory, trust_remote_code=False, local_files_only=True
        )
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InvalidInput(f"{directory}: the tokenizer cannot be read: {reason}") from error
