"""Statistics and Scores: what scoring gives, and how it is kept.

The sums are saved beside the scores, so another ratio, or another criterion whose needs they
meet, costs no second pass. They name the model by its tensors' digests: whoever reads the model
for them afterwards compares as it reads.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from bipline.base.errors import InvalidInput
from bipline.compression.criteria.interface import BlockScores, Sums, Unit
from bipline.model.checkpoint import Checkpoint
from bipline.storage.digests import digest_file
from bipline.storage.directory import DirectoryWriter, write_text
from bipline.storage.manifest import verify_directory
from bipline.storage.strict_json import read_json

KIND = "statistics"
PARTIAL_KIND = "partial-statistics"
SCORES_NAME = "scores.safetensors"
SCHEMA_VERSION = 3
# Criteria whose scores are norms, and sums of norms.
NORMS = ("magnitude", "wanda-sp", "llm-bip", "llm-bip-glu", "llm-bip-exact", "llm-bip-adjoint")


@dataclass(frozen=True)
class Statistics:
    """Additive sums (float64) per block, and what they were taken on.

    ``tensors`` holds the digest of every tensor of the model, where they are known.
    """

    tensor_digest: str
    calibration_digest: str
    dtype: str
    blocks: tuple[Sums, ...]
    tensors: dict[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Scores:
    """A criterion's scores of every block of one model, and the options it was given."""

    tensor_digest: str
    criterion: str
    blocks: tuple[BlockScores, ...]
    options: dict[str, Any] = field(default_factory=dict)
    prunes: Unit = "groups"


def empty_statistics(checkpoint: Checkpoint) -> Statistics:
    """No sums, for criteria that look at weights alone: no calibration and no forward pass."""
    return statistics_of(checkpoint, "", "", tuple({} for _ in range(_layers(checkpoint))))


def statistics_of(
    checkpoint: Checkpoint, calibration_digest: str, dtype: str, blocks: tuple[Sums, ...]
) -> Statistics:
    """Statistics of a model whose tensors were read on the way: only the others are read now."""
    digest = checkpoint.claimed_digest
    held = {**checkpoint.digests.expected, **checkpoint.digests.known}
    tensors = {name: held[name] for name in checkpoint.tensors}
    return Statistics(digest, calibration_digest, dtype, blocks, tensors)


def save_statistics(statistics: Statistics, scores: Scores, writer: DirectoryWriter) -> None:
    """Write sums and scores as safetensors, and what they are about as JSON."""
    path = writer.path / SCORES_NAME
    save_file(flattened([block.tensors() for block in scores.blocks]), path)
    scored = {n: getattr(scores, n) for n in ("criterion", "options", "prunes")}
    save_sums(statistics, writer, scored)
    # What follows from the scores is keyed by them, whatever other sums lie beside.
    writer.info["scores"] = digest_file(path)


def save_sums(
    statistics: Statistics, writer: DirectoryWriter, scored: dict[str, Any] | None = None
) -> None:
    """Write the sums alone: what one part of the calibration windows gives."""
    save_file(flattened(statistics.blocks), writer.path / "sums.safetensors")
    about = {
        "schema_version": SCHEMA_VERSION,
        "tensor_digest": statistics.tensor_digest,
        "tensors": statistics.tensors,
        "calibration_digest": statistics.calibration_digest,
        "dtype": statistics.dtype,
        "blocks": len(statistics.blocks),
        **(scored or {}),
    }
    write_text(writer.path / "statistics.json", json.dumps(about, indent=1) + "\n")
    told = ("tensor_digest", "criterion", "blocks")
    writer.info = {key: about[key] for key in told if key in about}


def load_statistics(directory: Path) -> tuple[Statistics, Scores]:
    """Read what :func:`save_statistics` wrote, after checking every byte against its manifest."""
    statistics, about = load_sums(directory)
    scores = by_block(_tensors(directory / SCORES_NAME, about.get("criterion")), about["blocks"])
    return statistics, Scores(
        about["tensor_digest"],
        about["criterion"],
        tuple(BlockScores(**block) for block in scores),
        # Before options there was the seed alone.
        about.get("options", {"seed": about.get("seed", 0)}),
        about.get("prunes", "groups"),
    )


def load_sums(directory: Path) -> tuple[Statistics, dict[str, Any]]:
    """Sums and what the JSON beside them says, after checking every byte of the directory."""
    verify_directory(directory)
    about = read_json(directory / "statistics.json", "description of statistics")
    statistics = Statistics(
        about["tensor_digest"],
        about["calibration_digest"],
        about["dtype"],
        tuple(by_block(_tensors(directory / "sums.safetensors"), about["blocks"])),
        about.get("tensors", {}),
    )
    return statistics, about


def _tensors(path: Path, criterion: str | None = None) -> dict[str, torch.Tensor]:
    """Sums, or scores of a criterion.

    Raises InvalidInput for NaN and infinities, of which no order is made, and for negative ones
    where all are norms or sums of them: others may say that a model is better without a part.
    """
    tensors = load_file(path)
    for name, tensor in tensors.items():
        signed = criterion not in NORMS and not name.endswith("_squares")
        if not bool(tensor.isfinite().all()):
            odd = "NaN or infinity"
        elif not signed and bool((tensor < 0).any()):
            odd = "a negative value"
        else:
            continue
        raise InvalidInput(f"{path}: {name} holds {odd}; delete {path.parent} and score again")
    return tensors


def flattened(blocks: tuple[Sums, ...] | list[Sums]) -> dict[str, torch.Tensor]:
    """Tensors of all blocks under ``INDEX.NAME``."""
    return {
        f"{index}.{name}": tensor.contiguous()
        for index, block in enumerate(blocks)
        for name, tensor in block.items()
    }


def by_block(tensors: dict[str, torch.Tensor], count: int) -> list[Sums]:
    """The inverse of :func:`flattened` for ``count`` blocks."""
    blocks: list[Sums] = [{} for _ in range(count)]
    for name, tensor in tensors.items():
        index, _, local = name.partition(".")
        blocks[int(index)][local] = tensor
    return blocks


def _layers(checkpoint: Checkpoint) -> int:
    return checkpoint.shape.num_hidden_layers
