"""Formats by name, and what they say of a model before it is there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bipline.base.errors import InvalidInput
from bipline.delivery.formats.gguf.format import Gguf
from bipline.delivery.formats.hf import Hf
from bipline.delivery.formats.interface import Format, Layout
from bipline.delivery.formats.onnx.format import Onnx
from bipline.model.checkpoint import Checkpoint

FORMATS: dict[str, Format] = {each.name: each for each in (Hf(), Gguf(), Onnx())}


def format_of(name: str) -> Format:
    """A format by name. Raises InvalidInput for an unknown one."""
    if name not in FORMATS:
        raise InvalidInput(f"format {name!r} is unknown; known: {', '.join(FORMATS)}")
    return FORMATS[name]


def loaded_from(name: str) -> str:
    """What users load of a format, relative to the package that holds it."""
    return f"{name}/{format_of(name).file}".rstrip("/")


def engine_format(name: str) -> Format:
    """A format that a model directory is written in anew; hf is what it has already.

    Raises InvalidInput for any other.
    """
    known = [each for each in FORMATS if each != "hf"]
    if name == "hf":
        raise InvalidInput(
            f"--format hf: a model directory has this format already; known: {', '.join(known)}"
        )
    if name not in known:
        raise InvalidInput(f"--format {name!r} is unknown; known: {', '.join(known)}")
    return FORMATS[name]


def check_formats(
    formats: Iterable[str], checkpoint: Checkpoint, texts: Mapping[str, Path], settings: Any
) -> dict[str, Layout]:
    """How each format will hold a model; ``settings`` has each one's under its name.

    Raises InvalidInput, before any work, for what a format cannot hold.
    """
    return {
        name: format_of(name).check(checkpoint, texts, getattr(settings, name, None))
        for name in formats
    }
