"""What all sections share: settings, checkpoints that are made once, folders for outputs."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.processes import run
from benchmarks.shapes import SHAPES

QUICK_SHAPE = "small"
BFLOAT16_BYTES = 2


@dataclass(frozen=True)
class Settings:
    """What the command line asked for."""

    quick: bool
    shape: str
    blocks: int | None
    overhead_blocks: int
    folder: Path
    plot: Path


@dataclass
class Session:
    """One run of the benchmarks. ``kept`` holds small files that a later section reads."""

    settings: Settings
    console: Console
    kept: Path
    found: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def statistics(self) -> Path:
        """Where ``main`` saves its sums and scores."""
        return self.kept / "statistics"

    @property
    def plan(self) -> Path:
        """Where ``main`` saves its plan."""
        return self.kept / "plan.json"

    def main_model(self) -> Path:
        """The checkpoint that most sections work on."""
        return self.checkpoint(self.settings.shape, self.settings.blocks)

    def checkpoint(
        self, shape: str, blocks: int | None = None, hidden_size: int | None = None
    ) -> Path:
        """A random checkpoint of a shape, made unless an earlier run made it.

        It may have other blocks, or be wider or narrower in proportion. It is made by a process
        of its own, so that this one stays small: see :mod:`.processes`.
        """
        sizes = scaled(shape, blocks, hidden_size)
        changes = {name: size for name, size in sizes.items() if SHAPES[shape][name] != size}
        parts = [shape]
        parts += [f"hidden-{hidden_size}"] if "hidden_size" in changes else []
        parts += [f"blocks-{blocks}"] if "num_hidden_layers" in changes else []
        out = self.settings.folder / "-".join(parts)
        if not out.is_dir():
            self.say(f"making {out}")
            changed = [f"{name}={size}" for name, size in changes.items()]
            run([sys.executable, "-m", "benchmarks.shapes", str(out), shape, *changed])
        return out

    def say(self, text: str) -> None:
        """One line about what is going on."""
        self.console.print(text, style="dim", highlight=False, markup=False, soft_wrap=True)

    @contextmanager
    def outputs(self) -> Iterator[Path]:
        """A folder for what a section writes; it goes when the section is over."""
        with _empty_folder(self.settings.folder / "outputs") as folder:
            yield folder


@contextmanager
def session(settings: Settings, console: Console) -> Iterator[Session]:
    """A session whose kept files go at its end; the checkpoints stay."""
    with _empty_folder(settings.folder / "kept") as kept:
        yield Session(settings, console, kept)


@contextmanager
def _empty_folder(path: Path) -> Iterator[Path]:
    """A folder for the length of the block; what a killed run left there goes first."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)  # or it would hide the failure before it


def scaled(shape: str, blocks: int | None, hidden_size: int | None) -> dict[str, int]:
    """A shape's sizes with other blocks, and with all widths in proportion to ``hidden_size``."""
    sizes = dict(SHAPES[shape])
    whole = sizes["hidden_size"]
    for name in ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"):
        sizes[name] = sizes[name] * (hidden_size or whole) // whole
    return {**sizes, "num_hidden_layers": blocks or sizes["num_hidden_layers"]}


def block_bytes(sizes: dict[str, int]) -> int:
    """Bytes of one block's linear weights in bfloat16."""
    hidden, heads = sizes["hidden_size"], sizes["num_attention_heads"]
    attention = 2 * hidden * (hidden + hidden // heads * sizes["num_key_value_heads"])
    return BFLOAT16_BYTES * (attention + 3 * hidden * sizes["intermediate_size"])


def blocks_for(sizes: dict[str, int], size: int) -> int:
    """The fewest blocks whose weights have ``size`` bytes, and at least those of the shape."""
    return max(sizes["num_hidden_layers"], ceil(size / block_bytes(sizes)))


def model_bytes(model: Path) -> int:
    """Size of a model's weight files in bytes."""
    return sum(path.stat().st_size for path in model.glob("*.safetensors"))
