"""What a training gives, as a model directory: the tensors that were trained, and all others.

What was not trained (experts and routers of a mixture, whatever lies beside a decoder, and for an
adapter norms and embeddings) is copied from the pruned model, byte for byte.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import groupby

from torch import Tensor

from bipline.compression.prune import (
    PLAN_NAME,
    copy_side_files,
    declared,
    write_config,
    write_shipped_files,
)
from bipline.model.checkpoint import TORCH_DTYPES, Checkpoint
from bipline.model.families import family_in, tensor_shapes
from bipline.model.loading import stored_apart
from bipline.model.writer import TensorSpec, write_weights
from bipline.storage.directory import DirectoryWriter, write_text
from bipline.values.origin import ModelOrigin
from bipline.values.plan import read_plan


def write_merged(
    source: Checkpoint, trained: Mapping[str, Tensor], writer: DirectoryWriter
) -> None:
    """Write trained weights and the source's others under its names, dtypes and side files.

    ``trained`` are by the names of the source's class.
    """
    dtypes, shapes = _stored_dtypes(source), _shapes(source)
    named = {source.stored_name(name): name for name in shapes}
    specs = [TensorSpec(lies, dtypes[name], shapes[name]) for lies, name in named.items()]

    def read(lie: list[str]) -> Iterator[tuple[str, Tensor]]:
        for new, those in groupby(lie, lambda each: named[each] in trained):
            if new:
                for each in those:
                    name = named[each]
                    yield each, trained[name].to(TORCH_DTYPES[dtypes[name]])
            else:
                wanted = [(named[each], None) for each in those]
                pieces = source.stream(wanted)
                yield from ((source.stored_name(name), piece) for name, piece in pieces)

    plan = source.directory / PLAN_NAME
    if plan.is_file():
        write_text(writer.path / PLAN_NAME, plan.read_text(encoding="utf-8"))
        origin = ModelOrigin.of_plan(read_plan(plan))
    else:
        origin = ModelOrigin.of_base(source.tensor_digest)
    tensor_digest = write_weights(writer, specs, read, metadata=origin.metadata())
    whole = source.whole_config(source.config)
    write_config(writer, whole, origin, tensor_digest)
    copy_side_files(source.folder, writer.path)
    write_shipped_files(source.config, writer.path)
    writer.info = declared(whole, source.shape, source.parameters, len(specs), tensor_digest)


def _stored_dtypes(source: Checkpoint) -> dict[str, str]:
    """The safetensors dtype of each tensor by its name in the class, which has some apart."""
    apart = stored_apart(source)
    return {
        own: source.tensor_header(name)[0]
        for name in source.tensors
        for own in apart.get(name, (name,))
    }


def _shapes(source: Checkpoint) -> dict[str, tuple[int, ...]]:
    """The shapes of all tensors as they are written, those beside a decoder behind its own."""
    own = tensor_shapes(family_in(source.config), source.config, source.shape)
    return {**own, **{name: source.tensor_header(name)[1] for name in sorted(source.beside)}}
