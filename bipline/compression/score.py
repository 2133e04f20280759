"""Score: one forward pass over the calibration windows, block by block.

The sums are saved beside the scores (:class:`Statistics`), so another ratio, or another
criterion whose needs they meet, costs no second pass.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from bipline.artifacts.directory import DirectoryWriter, write_text
from bipline.artifacts.errors import InvalidInput
from bipline.artifacts.manifest import verify_directory
from bipline.artifacts.progress import track
from bipline.compression.criteria import Criterion, load_criterion, unmet_needs
from bipline.compression.criteria.interface import Block, BlockScores, Options, Sums
from bipline.model.block_loop import Activations, BlockLoop
from bipline.model.block_loop import Block as LoopBlock
from bipline.model.checkpoint import Checkpoint

KIND = "statistics"


@dataclass(frozen=True)
class Statistics:
    """Additive sums (float64) per block, and what they were taken on."""

    tensor_digest: str
    calibration_digest: str
    dtype: str
    blocks: tuple[Sums, ...]


@dataclass(frozen=True)
class Scores:
    """A criterion's scores of every block of one model."""

    tensor_digest: str
    criterion: str
    blocks: tuple[BlockScores, ...]


def collect_statistics(
    checkpoint: Checkpoint,
    token_ids: torch.Tensor,
    calibration_digest: str,
    criterion: str,
    dtype: torch.dtype = torch.float32,
) -> Statistics:
    """Run the calibration windows through the model once and add up what the criterion observes.

    ``token_ids`` is ``[samples, seqlen]``. A criterion that needs no sums costs no pass.
    Raises InvalidInput where the model's activations are not finite.
    """
    chosen = load_criterion(criterion)
    if not chosen.NEEDS:
        return empty_statistics(checkpoint)
    loop = BlockLoop(checkpoint, dtype)
    hidden = loop.embed(token_ids)
    blocks: list[Sums] = []
    for block in track(loop.blocks(), "score blocks", checkpoint.shape.num_hidden_layers):
        sums, hidden = _observed(block, hidden, chosen, checkpoint)
        blocks.append(sums)
    name = str(dtype).removeprefix("torch.")
    return Statistics(checkpoint.tensor_digest, calibration_digest, name, tuple(blocks))


def empty_statistics(checkpoint: Checkpoint) -> Statistics:
    """No sums, for criteria that look at weights alone: no calibration and no forward pass."""
    blocks: tuple[Sums, ...] = tuple({} for _ in range(checkpoint.shape.num_hidden_layers))
    return Statistics(checkpoint.tensor_digest, "", "", blocks)


def compute_scores(
    checkpoint: Checkpoint, statistics: Statistics, criterion: str, options: Options
) -> Scores:
    """Turn sums into scores; needs the weights once and no forward pass.

    Raises InvalidInput when the sums are of another model or lack what the criterion needs.
    """
    if statistics.tensor_digest != checkpoint.tensor_digest:
        raise InvalidInput(
            f"the statistics are of model {statistics.tensor_digest[:12]}, "
            f"{checkpoint.directory} is {checkpoint.tensor_digest[:12]}"
        )
    chosen = load_criterion(criterion)
    blocks = []
    for index, sums in enumerate(statistics.blocks):
        if missing := unmet_needs(chosen, sums):
            raise InvalidInput(
                f"criterion {criterion} needs the sums {', '.join(missing)}, which the "
                "statistics do not hold; score again"
            )
        block = Block(index, checkpoint.shape, checkpoint.block_weights(index))
        scores = chosen.score(sums, block, options)
        _check_finite(scores, index)
        blocks.append(scores)
    return Scores(checkpoint.tensor_digest, criterion, tuple(blocks))


def save_statistics(statistics: Statistics, scores: Scores, writer: DirectoryWriter) -> None:
    """Write sums and scores as safetensors, and what they are about as JSON."""
    sums = {
        f"{index}.{name}": tensor.contiguous()
        for index, block in enumerate(statistics.blocks)
        for name, tensor in block.items()
    }
    tensors = {}
    for index, block in enumerate(scores.blocks):
        tensors[f"{index}.attention_groups"] = block.attention_groups.double().contiguous()
        tensors[f"{index}.ffn_channels"] = block.ffn_channels.double().contiguous()
    save_file(sums, writer.path / "sums.safetensors")
    save_file(tensors, writer.path / "scores.safetensors")
    about = {
        "tensor_digest": statistics.tensor_digest,
        "calibration_digest": statistics.calibration_digest,
        "dtype": statistics.dtype,
        "criterion": scores.criterion,
        "blocks": len(statistics.blocks),
    }
    write_text(writer.path / "statistics.json", json.dumps(about, indent=1) + "\n")
    writer.info = {key: about[key] for key in ("tensor_digest", "criterion", "blocks")}


def load_statistics(directory: Path) -> tuple[Statistics, Scores]:
    """Read what :func:`save_statistics` wrote, after checking every byte against its manifest."""
    verify_directory(directory)
    about: dict[str, Any] = json.loads((directory / "statistics.json").read_text(encoding="utf-8"))
    count = about["blocks"]
    sums = _by_block(load_file(directory / "sums.safetensors"), count)
    scores = _by_block(load_file(directory / "scores.safetensors"), count)
    statistics = Statistics(
        about["tensor_digest"], about["calibration_digest"], about["dtype"], tuple(sums)
    )
    return statistics, Scores(
        about["tensor_digest"], about["criterion"], tuple(BlockScores(**block) for block in scores)
    )


def _observed(
    block: LoopBlock, hidden: torch.Tensor, criterion: Criterion, checkpoint: Checkpoint
) -> tuple[Sums, torch.Tensor]:
    """One block's sums and its outputs; partial sums are added in chunk order, in float64."""
    seen = Block(block.index, checkpoint.shape, block.weights)
    total: Sums = {}

    def add(activations: Activations) -> None:
        for name, value in criterion.observe(seen, activations).items():
            total[name] = total[name] + value if name in total else value

    hidden = block.run(hidden, add)
    if not all(bool(value.isfinite().all()) for value in total.values()):
        raise InvalidInput(
            f"block {block.index}: activations are not finite; the weights hold NaN or infinity, "
            "or dtype overflows"
        )
    return total, hidden


def _check_finite(scores: BlockScores, index: int) -> None:
    for name in ("attention_groups", "ffn_channels"):
        if not bool(getattr(scores, name).isfinite().all()):
            raise InvalidInput(f"block {index}: the scores of its {name} are not finite")


def _by_block(tensors: dict[str, torch.Tensor], count: int) -> list[dict[str, torch.Tensor]]:
    blocks: list[dict[str, torch.Tensor]] = [{} for _ in range(count)]
    for name, tensor in tensors.items():
        index, _, local = name.partition(".")
        blocks[int(index)][local] = tensor
    return blocks
