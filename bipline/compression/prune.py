"""Prune: slice a checkpoint along a plan, straight from shards to shards.

No model is built and nothing is computed: every tensor is read in pieces, indexed along the axes
its family names, and written at once, so memory holds a few pieces. What is read is compared
with the model the plan is for, and the output appears only when all of it agreed. The plan that
was applied lies beside the weights; applied again to the same model it gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from bipline.artifacts.digests import digest_json
from bipline.artifacts.directory import DirectoryWriter, atomic_directory, is_finished, write_text
from bipline.artifacts.errors import InvalidInput
from bipline.artifacts.folder import Folder
from bipline.artifacts.manifest import Manifest, read_manifest
from bipline.artifacts.plan import BlockPlan, PruningPlan
from bipline.artifacts.progress import ticking
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
JOURNAL_NAME = "shards.json"
COPIED_FILES = ("generation_config.json", "LICENSE", "LICENSE.txt", *TOKENIZER_FILES)


def prune(
    checkpoint: Checkpoint,
    plan: PruningPlan,
    out: Path,
    shard_bytes: int = DEFAULT_SHARD_BYTES,
    work: Path | None = None,
) -> Manifest:
    """Write the smaller model into ``out``, which appears whole or not at all.

    With ``work`` the finished shards of a killed run are kept and need not be written again, and
    a run that was killed after its last step has nothing left to do.
    Raises InvalidInput when the plan is for another model or ``out`` is not empty.
    """
    journal = work / JOURNAL_NAME if work else None
    if journal and is_finished(out, journal):
        return read_manifest(out)
    key = digest_json([plan.digest, shard_bytes])
    with atomic_directory(out, KIND, journal, key) as writer:
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
    with ticking("write tensors", len(specs)) as tick:
        write_weights(writer, specs, lambda names: slicer.pieces(names, tick), shard_bytes)
    check_identity(checkpoint, plan)
    write_json(writer, "config.json", config)
    write_text(writer.path / PLAN_NAME, plan.to_json())
    copy_side_files(checkpoint.folder, writer.path)
    writer.info = declared(config, sum(_count(spec) for spec in specs), len(specs))


def check_plan(checkpoint: Checkpoint, plan: PruningPlan) -> None:
    """Raise InvalidInput unless the plan fits the model's shape."""
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


def check_identity(checkpoint: Checkpoint, plan: PruningPlan) -> None:
    """Raise InvalidInput unless the plan is for this model: by the digests of what was read.

    Tensors that nobody has read whole yet are read now.
    """
    if plan.tensor_digest != checkpoint.tensor_digest:
        raise InvalidInput(
            f"the plan is for model {plan.tensor_digest[:12]}, "
            f"{checkpoint.location} is {checkpoint.tensor_digest[:12]}"
        )


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

    def pieces(
        self, names: Sequence[str], tick: Callable[[], None] = lambda: None
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Tensors in order, sliced, in pieces of whole rows; ``tick`` is called once for each."""
        wanted = [(name, self._kept_along(name, 0)) for name in names]
        started = ""
        for name, piece in self.checkpoint.stream(wanted):
            if name != started:
                tick()
                started = name
            columns = self._kept_along(name, 1)
            yield name, piece if columns is None else piece.index_select(1, columns)

    def _kept_along(self, name: str, dimension: int) -> torch.Tensor | None:
        axes = self._axes[name]
        axis = axes[dimension] if dimension < len(axes) else ""
        return self._kept.get(name, {}).get(axis)

    def specs(self) -> list[TensorSpec]:
        """What :meth:`pieces` will give for every tensor, in file order."""
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


def copy_side_files(source: Folder, target: Path) -> None:
    """Copy tokenizer, generation settings and licence byte for byte; a template is never run."""
    present = set(source.names())
    for name in COPIED_FILES:
        if name in present:
            (target / name).write_bytes(source.read(name))


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
