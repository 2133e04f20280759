"""transformers' model of a checkpoint with all that lies around its decoder, as users load it."""

from __future__ import annotations

from typing import Any

import torch

from bipline.base.errors import InvalidInput
from bipline.model.built import one_line
from bipline.model.checkpoint import Checkpoint
from bipline.model.loading import refuse_odd_keys


def load_whole(checkpoint: Checkpoint, dtype: torch.dtype) -> Any:
    """The model that a checkpoint's decoder lies in, in eval mode, from its directory.

    Raises InvalidInput when transformers cannot load it, or finds tensors that are missing,
    unexpected or of another shape.
    """
    import transformers

    assert checkpoint.nesting  # noqa: S101
    make = getattr(transformers, checkpoint.nesting.wrapper.architecture)
    try:
        built, report = make.from_pretrained(
            checkpoint.directory, dtype=dtype, trust_remote_code=False, local_files_only=True,
            use_safetensors=True, output_loading_info=True,
        )  # fmt: skip
    except (AttributeError, KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise InvalidInput(
            f"{checkpoint.location}: transformers cannot load it: {one_line(error)}"
        ) from error
    refuse_odd_keys(report, checkpoint)
    return built.eval()
