"""Prune: slice a checkpoint along a plan, straight from shards to shards.

No model is built and nothing is computed: every tensor is read in pieces, indexed along the axes
its family names, and written at once, so memory holds a few pieces. What is read is compared
with the model the plan is for, and the output appears only when all of it agreed. The plan that
was applied lies beside the weights; applied again to the same model, with the corrections that
it was realised with, it gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isclose, prod
from pathlib import Path
from typing import Any

from bipline.base.errors import InvalidInput
from bipline.base.progress import ticking
from bipline.compression.allocation.widths import Widths
from bipline.compression.corrections import Corrections, hold_to_plan
from bipline.compression.slicing import Slicer
from bipline.model.checkpoint import Checkpoint
from bipline.model.families import build_of, exported_config, with_output_biases
from bipline.model.family import spelled
from bipline.model.per_layer.config import per_layer_config
from bipline.model.per_layer.shipping import refuse_tokenizer_code, shipped_files
from bipline.model.per_layer.stored import stored_config
from bipline.model.shapes import EXPERT_MULTIPLE, BlockWidths, ModelShape, shape_of
from bipline.model.side_files import is_side_file
from bipline.model.writer import DEFAULT_SHARD_BYTES, TensorSpec, write_json, write_weights
from bipline.storage.digests import digest_json
from bipline.storage.directory import DirectoryWriter, atomic_directory, is_finished, write_text
from bipline.storage.folder import Folder
from bipline.storage.manifest import Manifest, read_manifest
from bipline.storage.strict_json import read_json
from bipline.values.origin import ModelOrigin, config_digest
from bipline.values.plan import PLAN_NAME, BlockPlan, PruningPlan
from bipline.values.resolution import CONFIG

KIND = "model"
JOURNAL_NAME = "shards.json"


def prune(
    checkpoint: Checkpoint,
    plan: PruningPlan,
    out: Path,
    shard_bytes: int = DEFAULT_SHARD_BYTES,
    work: Path | None = None,
    corrections: Corrections | None = None,
) -> Manifest:
    """Write the smaller model into ``out``, which appears whole or not at all.

    With ``work`` the finished shards of a killed run are kept and need not be written again, and
    a run that was killed after its last step has nothing left to do.
    Raises InvalidInput when the plan is for another model or ``out`` is not empty, and where the
    ``corrections`` are not the plan's.
    """
    journal = work / JOURNAL_NAME if work else None
    if journal and is_finished(out, journal):
        return read_manifest(out)
    key = digest_json([plan.digest, shard_bytes])
    with atomic_directory(out, KIND, journal, key) as writer:
        write_pruned(checkpoint, plan, writer, shard_bytes, corrections)
    return read_manifest(out)


def write_pruned(
    checkpoint: Checkpoint,
    plan: PruningPlan,
    writer: DirectoryWriter,
    shard_bytes: int = DEFAULT_SHARD_BYTES,
    corrections: Corrections | None = None,
) -> None:
    """Write the smaller model's files into an open directory (see :func:`prune`)."""
    check_plan(checkpoint, plan)
    hold_to_plan(plan, corrections)
    config = pruned_config(checkpoint, plan, adds_biases(checkpoint, corrections))
    slicer = Slicer(checkpoint, plan, config, corrections)
    specs = slicer.specs()
    with ticking("write tensors", len(specs)) as tick:
        origin = ModelOrigin.of_plan(plan)
        tensor_digest = write_weights(
            writer,
            specs,
            lambda names: slicer.pieces(names, tick),
            shard_bytes,
            origin.metadata(),
        )
    check_identity(checkpoint, plan)
    whole = checkpoint.whole_config(config)
    write_config(writer, whole, origin, tensor_digest)
    write_text(writer.path / PLAN_NAME, plan.to_json())
    copy_side_files(checkpoint.folder, writer.path)
    write_shipped_files(config, writer.path)
    parameters = sum(_count(spec) for spec in specs)
    writer.info = declared(whole, shape_of(config), parameters, len(specs), tensor_digest)


def pruned_config(
    checkpoint: Checkpoint, plan: PruningPlan, biased: bool = False
) -> dict[str, Any]:
    """The config.json of what the plan makes of a model; ``biased`` where biases are added.

    Raises InvalidInput when no class holds the result.
    """
    blocks = plan.kept_blocks
    config = with_output_biases(checkpoint.config) if biased else checkpoint.config
    check_layout(checkpoint, plan.layout)
    if plan.layout == "per-layer":
        kept = [plan.blocks[index].widths for index in blocks]
        widths = [BlockWidths(num_key_value_heads=g, intermediate_size=f) for g, f in kept]
        return per_layer_config(config, blocks, widths)
    # The first ones may have no experts beside others that have some.
    last = plan.blocks[blocks[-1]]
    groups, units = last.widths
    inside = last.queries_per_group, last.channels_per_expert
    return exported_config(config, units, groups, blocks, *inside)


def check_layout(checkpoint: Checkpoint, layout: str) -> None:
    """Raise InvalidInput where no class holds a model of this layout."""
    if layout == "per-layer" and checkpoint.nesting:
        raise InvalidInput(
            f"a {checkpoint.nesting.config['model_type']} has no class whose blocks differ in "
            "width; take the uniform layout"
        )


def adds_biases(checkpoint: Checkpoint, corrections: Corrections | None) -> bool:
    """Whether corrections hold a bias where the source has none."""
    return corrections is not None and any(
        name not in checkpoint.block_names(index)
        for index in corrections.blocks
        for name in corrections.shapes(index)
    )


def check_plan(checkpoint: Checkpoint, plan: PruningPlan) -> None:
    """Raise InvalidInput unless the plan fits the model's shape and leaves a model."""
    shape = checkpoint.shape
    if plan.within_experts:
        check_expert_channels(checkpoint)
    if len(plan.blocks) != shape.num_hidden_layers:
        raise InvalidInput(f"the plan has {len(plan.blocks)} blocks, not {shape.num_hidden_layers}")
    for index, block in enumerate(plan.blocks):
        held = shape.block(index)
        if max(block.attention_groups, default=-1) >= held.num_key_value_heads:
            raise InvalidInput(f"the plan keeps a group that block {index} does not have")
        if max((heads[-1] for heads in block.query_heads), default=-1) >= held.queries_per_group:
            raise InvalidInput(f"the plan keeps a query head that block {index} does not have")
        _check_ffn(block, held, index)
    if not any(block.attention_groups for block in plan.blocks):
        raise InvalidInput(
            "the plan keeps no attention in any block; keep at least one attention group, "
            "because a model without attention has no KV cache to decode with"
        )
    if plan.layout == "uniform":
        _check_uniform(plan, shape)
    else:
        _check_per_layer(plan)
        refuse_tokenizer_code(checkpoint.folder)


def check_expert_channels(checkpoint: Checkpoint) -> None:
    """Raise InvalidInput where channels of experts cannot go."""
    if not build_of(checkpoint.family).has_experts:
        raise InvalidInput(
            "of_experts channels: the FFNs of this model are made of channels and not of experts; "
            "leave it out"
        )


def _check_ffn(block: BlockPlan, held: ModelShape, index: int) -> None:
    """Raise InvalidInput unless what a plan keeps of an FFN is there, and enough for a token."""
    channels = 0 if held.num_experts else held.intermediate_size
    if max(block.ffn_channels, default=-1) >= channels:
        raise InvalidInput(f"the plan keeps an FFN channel that block {index} does not have")
    if max(block.experts, default=-1) >= held.num_experts:
        raise InvalidInput(f"the plan keeps an expert that block {index} does not have")
    if held.num_experts and 0 < len(block.experts) < held.num_experts_per_tok:
        raise InvalidInput(
            f"the plan keeps {len(block.experts)} experts of block {index}, and every token passes "
            f"through {held.num_experts_per_tok} (num_experts_per_tok); keep at least as many"
        )
    most = max((channels[-1] for channels in block.expert_channels), default=-1)
    if most >= held.intermediate_size or max(block.shared_channels, default=-1) >= (
        held.shared_channels
    ):
        raise InvalidInput(f"the plan keeps a channel that no expert of block {index} has")
    kept = block.channels_per_expert
    if kept and kept % EXPERT_MULTIPLE and kept != held.intermediate_size:
        raise InvalidInput(
            f"the plan keeps {kept} channels of every expert of block {index}; keep a multiple of "
            f"{EXPERT_MULTIPLE}, because transformers' grouped products of experts take no others"
        )
    shared = (kept or 0) * held.shared_experts
    if len(block.shared_channels) != shared:
        raise InvalidInput(
            f"the plan keeps {len(block.shared_channels)} channels of what all tokens share in "
            f"block {index}, and its class holds {shared}: as many as of {held.shared_experts} "
            "experts"
        )


def _check_uniform(plan: PruningPlan, shape: ModelShape) -> None:
    """Raise InvalidInput unless all blocks that stay are whole and equally wide.

    An FFN without experts, in a model that has some, keeps all channels.
    """
    widths = {plan.blocks[index].widths for index in plan.kept_blocks}
    for index in set(plan.kept_blocks) & set(range(shape.dense_blocks)):
        kept = len(plan.blocks[index].ffn_channels)
        if kept != shape.dense_channels:
            raise InvalidInput(
                f"the plan keeps {kept} of {shape.dense_channels} FFN channels of block {index}, "
                "which has no experts beside others that have some; keep all of them"
            )
    alike = {
        (plan.blocks[index].widths, plan.blocks[index].channels_per_expert)
        for index in plan.kept_blocks
        if index >= shape.dense_blocks
    }
    attention = {
        (len(block.attention_groups), block.queries_per_group)
        for block in (plan.blocks[index] for index in plan.kept_blocks)
    }
    if len(alike) > 1 or len(attention) > 1:
        raise InvalidInput("the plan's blocks differ in width, which the uniform layout excludes")
    if 0 in min(widths):
        raise InvalidInput(
            "the plan drops the FFN of every block that stays, which the uniform layout excludes; "
            "the per-layer layout allows it"
        )


def _check_per_layer(plan: PruningPlan) -> None:
    """Raise InvalidInput where parts of groups or experts go, which that layout's classes lack."""
    if any(block.query_heads for block in plan.blocks):
        raise InvalidInput(
            "the plan lists query heads, which the uniform layout alone can hold; in the per-layer "
            "layout whole attention groups go"
        )
    if plan.within_experts:
        raise InvalidInput(
            "the plan lists channels of experts, which the uniform layout alone can hold"
        )


def check_budget(checkpoint: Checkpoint, plan: PruningPlan) -> None:
    """Raise InvalidInput unless a plan that was read reaches what it says, counted anew."""
    shape = checkpoint.shape
    removed = sum(
        Widths.of(block).removed_weights(shape.block(index))
        for index, block in enumerate(plan.blocks)
    )
    counted = {
        "reached_blocks": removed / shape.linear_weights,
        "reached_total": removed / checkpoint.parameters,
    }
    for name, value in counted.items():
        told = getattr(plan.budget, name)
        if not isclose(told, value, abs_tol=1e-9):
            raise InvalidInput(f"the plan's {name} is {told:g}, its blocks reach {value!r}")


def check_identity(checkpoint: Checkpoint, plan: PruningPlan) -> None:
    """Raise InvalidInput unless the plan is for this model: by the digests of what was read.

    Tensors that nobody has read whole yet are read now.
    """
    if plan.tensor_digest != checkpoint.tensor_digest:
        raise InvalidInput(
            f"the plan is for model {plan.tensor_digest[:12]}, "
            f"{checkpoint.location} is {checkpoint.tensor_digest[:12]}"
        )


def copy_side_files(source: Folder, target: Path) -> None:
    """Copy tokenizer, generation settings and licences byte for byte; a template is never run."""
    for name in filter(is_side_file, source.names()):
        (target / name).parent.mkdir(exist_ok=True)
        (target / name).write_bytes(source.read(name))


def write_shipped_files(config: Mapping[str, Any], target: Path) -> None:
    """Write the code and the README that a per-layer model needs beside its weights."""
    for name, content in shipped_files(config).items():
        (target / name).write_bytes(content)


def write_config(
    writer: DirectoryWriter, config: Mapping[str, Any], origin: ModelOrigin, tensor_digest: str
) -> None:
    """Write config.json with the section that says where the tensors came from."""
    told = origin.model_copy(update={"tensor_digest": tensor_digest})
    write_json(writer, CONFIG, {**spelled(stored_config(config)), **told.section()})


def declare_content(writer: DirectoryWriter) -> None:
    """Declare the digest of what the directory holds, apart from which code wrote it.

    Covers every file and the size of the weights: what measures a model is keyed by it.
    """
    files = {name: entry.sha256 for name, entry in writer.manifest().files.items()}
    shards = [name for name in files if name.endswith(".safetensors")]
    for name in (CONFIG, *shards):
        del files[name]
    content = {
        "files": files,
        "config": config_digest(read_json(writer.path / CONFIG, "config")),
        "tensors": writer.info["tensor_digest"],
        "weight_bytes": sum((writer.path / name).stat().st_size for name in shards),
    }
    writer.info["content"] = digest_json(content)


def declared(
    config: Mapping[str, Any],
    shape: ModelShape,
    parameters: int,
    tensors: int,
    tensor_digest: str,
) -> dict[str, object]:
    """What a model directory's manifest declares: class, sizes, counts and tensors."""
    return {
        "tensor_digest": tensor_digest,
        "architecture": config["architectures"][0],
        "parameters": parameters,
        "tensors": tensors,
        **shape.model_dump(mode="json", exclude_defaults=True),
    }


def _count(spec: TensorSpec) -> int:
    return prod(spec.shape)
