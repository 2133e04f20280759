"""Random checkpoints of real shapes: the sizes of published models, weights drawn by seed.

Speed and memory do not depend on what the weights say, so nothing is downloaded. The tokenizer
is the embedded reference model's. Blocks may be fewer than the model has, to fit a disk.

    python -m benchmarks.shapes OUT SHAPE [SIZE=NUMBER ...]
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from bipline.model.families import family_of, shape_of, tensor_shapes
from bipline.model.writer import TensorSpec, write_weights
from bipline.storage.directory import atomic_directory, write_text
from bipline.storage.stage_key import PROJECT_ROOT

TOKENIZER = PROJECT_ROOT / "assets" / "reference-llm"
PIECE_ROWS = 2048

SHAPES: dict[str, dict[str, int]] = {
    # name: hidden, intermediate, heads, KV heads, blocks, vocabulary (from the models' config.json)
    "llama-7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32,
                 "num_key_value_heads": 32, "num_hidden_layers": 32, "vocab_size": 32000},
    "llama-3-8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32,
                   "num_key_value_heads": 8, "num_hidden_layers": 32, "vocab_size": 128256},
    "llama-3-70b": {"hidden_size": 8192, "intermediate_size": 28672, "num_attention_heads": 64,
                    "num_key_value_heads": 8, "num_hidden_layers": 80, "vocab_size": 128256},
    "llama-3.1-405b": {"hidden_size": 16384, "intermediate_size": 53248,
                       "num_attention_heads": 128, "num_key_value_heads": 8,
                       "num_hidden_layers": 126, "vocab_size": 128256},
    "narrow-1b": {"hidden_size": 1024, "intermediate_size": 2816, "num_attention_heads": 16,
                  "num_key_value_heads": 16, "num_hidden_layers": 32, "vocab_size": 32000},
    "smollm2-135m": {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9,
                     "num_key_value_heads": 3, "num_hidden_layers": 30, "vocab_size": 49152},
    "small": {"hidden_size": 512, "intermediate_size": 1408, "num_attention_heads": 8,
              "num_key_value_heads": 4, "num_hidden_layers": 8, "vocab_size": 4096},
}  # fmt: skip


def random_checkpoint(
    out: Path, name: str, dtype: torch.dtype = torch.bfloat16, **changes: int
) -> Path:
    """A checkpoint of a shape in ``out``, made unless it is there; ``changes`` replace sizes."""
    if not out.is_dir():
        config = _config({**SHAPES[name], **changes}, dtype)
        shapes = tensor_shapes(family_of("llama"), config, shape_of(config))
        specs = [TensorSpec(tensor, _dtype_name(dtype), of) for tensor, of in shapes.items()]
        sizes = {spec.name: spec.shape for spec in specs}
        with atomic_directory(out, "benchmark-model") as writer:
            write_weights(writer, specs, lambda names: _drawn(names, sizes, dtype))
            write_text(writer.path / "config.json", json.dumps(config, indent=1) + "\n")
            for file in TOKENIZER.glob("tokenizer*"):
                shutil.copyfile(file, writer.path / file.name)
    return out


def config_of(name: str) -> dict[str, Any]:
    """The config.json of a shape, in bfloat16."""
    return _config(SHAPES[name], torch.bfloat16)


def _config(sizes: dict[str, int], dtype: torch.dtype) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "head_dim": sizes["hidden_size"] // sizes["num_attention_heads"],
        "hidden_act": "silu",
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "torch_dtype": str(dtype).removeprefix("torch."),
        **sizes,
    }


def _drawn(
    names: list[str], sizes: dict[str, tuple[int, ...]], dtype: torch.dtype
) -> Iterator[tuple[str, torch.Tensor]]:
    return ((name, piece) for name in names for piece in _pieces(sizes[name], dtype))


def _pieces(shape: tuple[int, ...], dtype: torch.dtype) -> Iterator[torch.Tensor]:
    """Weights of the usual size at initialisation; norms are ones.

    One drawn piece is repeated with another sign and order: drawing 7 billion numbers would take
    longer than all that is measured.
    """
    if len(shape) == 1:
        yield torch.ones(shape, dtype=dtype)
        return
    generator = torch.Generator().manual_seed(shape[0])
    drawn = (torch.randn(PIECE_ROWS, shape[1], generator=generator) * 0.02).to(dtype)
    for first in range(0, shape[0], PIECE_ROWS):
        rows = min(PIECE_ROWS, shape[0] - first)
        yield drawn.roll(first // PIECE_ROWS * 7, 1)[:rows]


def _dtype_name(dtype: torch.dtype) -> str:
    return {torch.bfloat16: "BF16", torch.float32: "F32"}[dtype]


def main() -> None:
    """Make one checkpoint from the command line."""
    parser = argparse.ArgumentParser(description="Make a random checkpoint of a known shape.")
    parser.add_argument("out", type=Path)
    parser.add_argument("shape", choices=sorted(SHAPES))
    parser.add_argument("sizes", nargs="*", help="SIZE=NUMBER, such as num_hidden_layers=4")
    given = parser.parse_args()
    changes = {name: int(number) for name, number in (size.split("=") for size in given.sizes)}
    random_checkpoint(given.out, given.shape, torch.bfloat16, **changes)


if __name__ == "__main__":
    main()
