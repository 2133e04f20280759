"""What a compensation is asked, and what of it can be seen to fail before any window is drawn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bipline.base.errors import InvalidInput
from bipline.compression.compensation.drawn_windows import generated_windows
from bipline.compression.compensation.engine import check_compensation, check_known
from bipline.compression.compensation.memory import COMPUTING_BYTES, compensation_bytes
from bipline.compression.compensation.options import (
    PUBLISHED,
    CompensationOptions,
    published_options,
)
from bipline.compression.compensation.tokens import least_samples
from bipline.compression.options import options_from
from bipline.model.checkpoint import FLOAT_DTYPES, Checkpoint
from bipline.model.families import with_output_biases
from bipline.model.memory import gigabytes
from bipline.model.sampling import sampling_bytes
from bipline.model.shapes import ModelShape
from bipline.settings.line import CompensateSettings


def options_by_name(name: str, given: Mapping[str, Any]) -> CompensationOptions:
    """The options of the compensation of this name, published defaults for the rest.

    Raises InvalidInput for an unknown name, and for an option that does not exist or is out of
    range; ``none`` has none.
    """
    check_known(name)
    if name == "none" and given:
        raise InvalidInput("compensation none has no options")
    if name in PUBLISHED:
        own = options_from(PUBLISHED[name], f"compensation {name}", 0, given)
        return published_options(name, own)
    return options_from(CompensationOptions, f"compensation {name}", 0, given)


def compensation_options(settings: CompensateSettings) -> CompensationOptions:
    """The options that are set. Raises InvalidInput as :func:`options_by_name` does."""
    return options_by_name(settings.chosen, settings.compensation_option)


def least_samples_of(settings: CompensateSettings, shape: ModelShape, seqlen: int) -> int:
    """The fewest samples of ``seqlen`` tokens whose fitted part is enough; 0 for none."""
    if settings.chosen == "none":
        return 0
    return least_samples(shape, seqlen, compensation_options(settings).held_out)


def wanted_samples_of(settings: CompensateSettings, seqlen: int) -> int:
    """The samples of ``seqlen`` tokens that its option ``text_tokens`` asks for; 0 for none."""
    return compensation_options(settings).text_tokens // seqlen


def check_compensation_settings(
    checkpoint: Checkpoint,
    settings: CompensateSettings,
    samples: int,
    seqlen: int,
    max_memory: int | None = None,
) -> None:
    """Raise InvalidInput for what can be seen to fail before any window is drawn.

    ``max_memory`` is the user's limit in bytes.
    """
    compensation, options = settings.chosen, compensation_options(settings)
    if compensation == "none":
        return
    check_compensation(checkpoint, samples, seqlen, compensation, options)
    if adds_output_biases(settings):
        with_output_biases(checkpoint.config)
    need = needed_bytes(checkpoint, settings, samples, seqlen)
    if max_memory is not None and need > max_memory:
        raise InvalidInput(
            f"compensation {compensation} needs {gigabytes(need)} beside the forward pass, more "
            f"than the limit of {gigabytes(max_memory)}; raise --max-memory, or use a simpler "
            "compensation"
        )


def adds_output_biases(settings: CompensateSettings) -> bool:
    """Whether biases are added at o_proj and down_proj, whether or not the model has some."""
    if settings.chosen == "none":
        return False
    bias = compensation_options(settings).bias
    return bias == "on" or (settings.chosen, bias) == ("bias", "auto")


def needed_bytes(
    checkpoint: Checkpoint, settings: CompensateSettings, samples: int, seqlen: int
) -> int:
    """Bytes at the fitting of this model's widest block, or to generate windows if that is more."""
    compensation, options = settings.chosen, compensation_options(settings)
    names = checkpoint.stored_names(0).values()
    weight_bytes = max(FLOAT_DTYPES[checkpoint.tensor_header(name)[0]] for name in names)
    generated = generated_windows(compensation, options, samples)
    return max(
        compensation_bytes(checkpoint.shape, compensation, options, weight_bytes),
        sampling_bytes(checkpoint.shape, generated, seqlen, COMPUTING_BYTES),
    )
