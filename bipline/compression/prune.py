"""Prune: slice a checkpoint along a plan, straight from shards to shards.

No model is built and nothing is computed: every tensor is indexed along the axes its family
names and written at once, so memory holds one tensor. The plan that was applied lies beside the
weights; applied again to the same model it gives the same bytes.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from bipline.artifacts.directory import DirectoryWriter, atomic_directory, write_text
from bipline.artifacts.errors import InvalidInput
from bipline.artifacts.manifest import Manifest, read_manifest
from bipline.artifacts.plan import BlockPlan, PruningPlan
from bipline.artifacts.progress import track
from bipline.model.checkpoint import Checkpoint
from bipline.model.families import (
    Axes,
    ModelShape,
    block_axes,
    exported_config,
    model_axes,
    shape_of,
)
from bipline.model.tokenizer import TOKENIZER_FILES
from bipline.model.writer import DEFAULT_SHARD_BYTES, TensorSpec, write_json, write_weights

KIND = "model"
PLAN_NAME = "pruning_plan.json"
COPIED_FILES = ("generation_config.json", "LICENSE", "LICENSE.txt", *TOKENIZER_FILES)


def prune(
    checkpoint: Checkpoint, plan: PruningPlan, out: Path, shard_bytes: int = DEFAULT_SHARD_BYTES
) -> Manifest:
    """Write the smaller model into ``out``, which appears whole or not at all.

    Raises InvalidInput when the plan is for another model or ``out`` is not empty.
    """
    with atomic_directory(out, KIND) as writer:
        write_pruned(checkpoint, plan, writer, shard_bytes)
    return read_manifest(out)


def write_pruned(
    checkpoint: Checkpoint,
    plan: PruningPlan,
    writer: DirectoryWriter,
    shard_bytes: int = DEFAULT_SHARD_BYTES,
) -> None:
    """Write the smaller model's files into an open directory (see :func:`prune`)."""
    check_plan(checkpoint, plan)
    slicer = Slicer(checkpoint, plan)
    config = exported_config(
        checkpoint.config, len(plan.blocks[0].ffn_channels), len(plan.blocks[0].attention_groups)
    )
    specs = slicer.specs()
    names = {spec.name for spec in specs}
    progress = iter(track([spec.name for spec in specs], "write tensors"))
    write_weights(writer, specs, lambda name: slicer.read(next(progress)), shard_bytes)
    next(progress, None)
    write_json(writer, "config.json", config)
    write_text(writer.path / PLAN_NAME, plan.to_json())
    copy_side_files(checkpoint.directory, writer.path)
    writer.info = declared(config, sum(_count(spec) for spec in specs), len(names))


def check_plan(checkpoint: Checkpoint, plan: PruningPlan) -> None:
    """Raise InvalidInput unless the plan is for this model and fits its shape."""
    if plan.tensor_digest != checkpoint.tensor_digest:
        raise InvalidInput(
            f"the plan is for model {plan.tensor_digest[:12]}, "
            f"{checkpoint.directory} is {checkpoint.tensor_digest[:12]}"
        )
    shape = checkpoint.shape
    if len(plan.blocks) != shape.num_hidden_layers:
        raise InvalidInput(f"the plan has {len(plan.blocks)} blocks, not {shape.num_hidden_layers}")
    widths = {(len(b.attention_groups), len(b.ffn_channels)) for b in plan.blocks}
    if len(widths) > 1:
        raise InvalidInput("the plan's blocks differ in width, which the uniform layout excludes")
    for index, block in enumerate(plan.blocks):
        if block.attention_groups[-1] >= shape.num_key_value_heads:
            raise InvalidInput(f"the plan keeps a group that block {index} does not have")
        if block.ffn_channels[-1] >= shape.intermediate_size:
            raise InvalidInput(f"the plan keeps an FFN channel that block {index} does not have")


class Slicer:
    """Reads tensors of a checkpoint with only the rows and columns that a plan keeps."""

    def __init__(self, checkpoint: Checkpoint, plan: PruningPlan) -> None:
        self.checkpoint = checkpoint
        self._axes = model_axes(checkpoint.family, checkpoint.config)
        self._kept: dict[str, dict[str, torch.Tensor]] = {}
        local_names = block_axes(checkpoint.family, checkpoint.config)
        for index, block in enumerate(plan.blocks):
            kept = kept_indices(block, checkpoint.shape)
            prefix = checkpoint.block_prefix(index)
            self._kept.update({prefix + name: kept for name in local_names})

    def read(self, name: str) -> torch.Tensor:
        """One tensor, sliced."""
        tensor = self.checkpoint.tensor(name)
        for dimension, axis in enumerate(self._axes[name]):
            if (kept := self._kept.get(name, {}).get(axis)) is not None:
                tensor = tensor.index_select(dimension, kept)
        return tensor

    def specs(self) -> list[TensorSpec]:
        """What :meth:`read` will give for every tensor, in file order."""
        return [self._spec(name, axes) for name, axes in self._axes.items()]

    def _spec(self, name: str, axes: Axes) -> TensorSpec:
        dtype, shape = self.checkpoint.tensor_header(name)
        kept = self._kept.get(name, {})
        sizes = (len(kept[a]) if a in kept else n for a, n in zip(axes, shape, strict=True))
        return TensorSpec(name, dtype, tuple(sizes))


def kept_indices(block: BlockPlan, shape: ModelShape) -> dict[str, torch.Tensor]:
    """Kept row or column indices by axis: an attention group is a KV head and its queries."""
    groups = torch.tensor(block.attention_groups)
    width = shape.head_dim * shape.queries_per_group
    return {
        "kv_heads": _spread(groups, shape.head_dim),
        "query_heads": _spread(groups, width),
        "ffn_channels": torch.tensor(block.ffn_channels),
    }


def copy_side_files(source: Path, target: Path) -> None:
    """Copy tokenizer, generation settings and licence byte for byte; a template is never run."""
    for name in COPIED_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def declared(config: dict[str, object], parameters: int, tensors: int) -> dict[str, object]:
    """What a model directory's manifest declares: class, sizes and counts."""
    return {
        "architecture": config["architectures"][0],  # type: ignore[index]
        "parameters": parameters,
        "tensors": tensors,
        **shape_of(config).model_dump(),
    }


def _count(spec: TensorSpec) -> int:
    return int(torch.Size(spec.shape).numel())


def _spread(groups: torch.Tensor, width: int) -> torch.Tensor:
    """Every channel index of the kept groups: ``[groups] -> [groups * width]``."""
    return (groups[:, None] * width + torch.arange(width)).reshape(-1)
