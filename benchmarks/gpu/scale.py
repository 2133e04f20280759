"""How large everything is: on the GPU, and in the rehearsal on a CPU."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TEXT = ROOT / "assets" / "texts" / "calibration.txt"
BUNDLE = Path("build/gpu-bundle")
REFERENCES = ("reference-llm", "reference-mha")


@dataclass(frozen=True)
class Shape:
    """A shape of :mod:`benchmarks.shapes`, and the sizes that replace its own."""

    name: str
    changes: dict[str, int] = field(default_factory=dict)

    @property
    def folder(self) -> str:
        """A folder's name that tells one shape from another."""
        return "-".join([self.name, *(str(size) for size in self.changes.values())])


@dataclass(frozen=True)
class Scale:
    """Sizes, counts of windows and the device that is measured.

    ``stand_in`` is taken for the trained models where it is given. ``file_bytes`` and
    ``matrix_size`` are what rates are measured with.
    """

    name: str
    device: str
    whole: Shape
    whole_samples: int
    part: Shape
    part_samples: int
    reference_samples: int
    file_bytes: int
    matrix_size: int
    seqlen: int = 128
    stand_in: Shape | None = None


# 249 windows are the fewest that compensation takes for 14,336 channels.
FULL = Scale(
    name="full",
    device="cuda",
    whole=Shape("llama-7b"),
    whole_samples=128,
    part=Shape("llama-3-8b", {"num_hidden_layers": 4, "vocab_size": 4096}),
    part_samples=249,
    reference_samples=64,
    file_bytes=4 << 30,
    matrix_size=8192,
)
_SHAPE = Shape(
    "small",
    {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_hidden_layers": 2,
    },
)
REHEARSAL = Scale(
    name="rehearsal",
    device="cpu",
    whole=_SHAPE,
    whole_samples=8,
    part=_SHAPE,
    part_samples=8,
    reference_samples=8,
    file_bytes=16 << 20,
    matrix_size=256,
    seqlen=32,
    stand_in=_SHAPE,
)


def trained_models() -> dict[str, Path | None]:
    """Where the trained models lie; None for one that is nowhere."""
    data = Path(os.environ.get("BIPLINE_DATA", ROOT.parent / "shared" / "data"))
    places = [ROOT / "assets", ROOT / BUNDLE / "models", data / "models"]
    return {
        name: next((place / name for place in places if (place / name).is_dir()), None)
        for name in REFERENCES
    }
