"""Targets: what a plan may come to at most, as the settings ask for it.

Parameters and the bytes of safetensors files are counted from the header that will be written, the
bytes of a gguf from its types and its keys. What a gguf tells of where its tensors came from is
counted at its longest, so that the file is below its target by as much.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from bipline.compression.allocate import choices_for
from bipline.compression.allocation.target import Measure, Target
from bipline.compression.allocation.widths import Widths, in_model
from bipline.compression.prune import pruned_config
from bipline.compression.target_format import HF
from bipline.compression.written import (
    SOME_DIGEST,
    plan_of,
    written_bytes,
    written_parameters,
    written_tensors,
)
from bipline.model.checkpoint import Checkpoint
from bipline.model.families import family_in
from bipline.model.safetensors_header import StoredTensor
from bipline.model.shapes import shape_of
from bipline.settings.gguf import GgufSettings
from bipline.settings.line import AllocateSettings
from bipline.values.export import Origin
from bipline.values.plan import Layout

# As long as a model's name, licence or revision is taken to be in a gguf.
SOME_TEXT = "-" * 96


def target_of(checkpoint: Checkpoint, settings: AllocateSettings) -> Target | None:
    """The target of an allocation; None where a ratio was asked for."""
    if settings.target is None:
        return None
    (name, most), layout = settings.target, settings.layout
    choices = choices_for(checkpoint, settings)
    kept = partial(in_model, choices)

    format_, _, type_ = (settings.target_format or HF).partition(":")
    if name == "target_parameters":
        measure: Measure = lambda widths: written_parameters(checkpoint, kept(widths), layout)  # noqa: E731
    elif format_ == HF:
        measure = lambda widths: written_bytes(checkpoint, kept(widths), layout)  # noqa: E731
    else:
        options = GgufSettings.model_validate({"type": type_})
        measure = lambda widths: _gguf_bytes(checkpoint, kept(widths), layout, options)  # noqa: E731
    return Target(name, most, measure)


def with_ratio(checkpoint: Checkpoint, settings: AllocateSettings) -> AllocateSettings:
    """The same with the ratio that a target comes to; as it is where one was asked for.

    Raises InvalidInput for a target out of reach.
    """
    target = target_of(checkpoint, settings)
    if target is None:
        return settings
    ratio = target.ratio(choices_for(checkpoint, settings))
    return settings.model_copy(update={"ratio": ratio, "ratio_of": "blocks"})


def _gguf_bytes(
    checkpoint: Checkpoint, widths: Sequence[Widths], layout: Layout, settings: GgufSettings
) -> int:
    from bipline.delivery.formats.gguf.format import file_bytes

    plan = plan_of(widths, layout, checkpoint.shape)
    config = pruned_config(checkpoint, plan)
    tensors = {
        spec.name: StoredTensor(None, spec.dtype, spec.shape, 0, spec.num_bytes)  # type: ignore[arg-type]
        for spec in written_tensors(checkpoint, plan)
    }
    family, shape = family_in(config), shape_of(config)
    smaller = replace(checkpoint, config=config, family=family, shape=shape, tensors=tensors)
    told = dict.fromkeys(("name", "licence", "revision", "base_model", "base_revision"), SOME_TEXT)
    digests = dict.fromkeys(("tensor_digest", "plan_digest", "base_tensor_digest"), SOME_DIGEST)
    origin = Origin(**told, **digests, version=SOME_TEXT, git_commit=SOME_DIGEST)
    return file_bytes(smaller, origin, settings)
