"""What a target size is of: named in the settings, or the format that they export."""

from __future__ import annotations

from bipline.base.errors import InvalidInput
from bipline.compression.compensation.checks import adds_output_biases
from bipline.model.writer import DEFAULT_SHARD_BYTES
from bipline.settings.compress import CompressSettings
from bipline.settings.line import AllocateSettings, LineSettings

HF, GGUF = "hf", "gguf"


def with_target_format(settings: LineSettings) -> AllocateSettings:
    """Settings of an allocation that say what their ``target_size`` is of.

    Raises InvalidInput for what no target counts: biases that are added, and shards of another size
    than the usual one.
    """
    section = settings.allocate
    if section.target is None:
        return section
    if adds_output_biases(settings.compensate):
        raise InvalidInput(
            "a target counts no biases that compensation adds; give --ratio, or bias=off"
        )
    if section.target_size is None or section.target_format is not None:
        return section
    written = HF
    if isinstance(settings, CompressSettings) and GGUF in settings.export.formats:
        written = f"{GGUF}:{settings.export.gguf.type}"
    if written == HF and settings.prune.shard_size != DEFAULT_SHARD_BYTES:
        raise InvalidInput("target_size counts shards of the usual size; leave shard_size out")
    return section.model_copy(update={"target_format": written})
