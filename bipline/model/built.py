"""transformers' own objects of a config.json: its config, its class, its model with no weights."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch

from bipline.base.errors import InvalidInput
from bipline.model.family import spelled
from bipline.model.per_layer.shipping import own_class
from bipline.model.shapes import is_per_layer

# How transformers runs experts: one after the other, as their class says. Its quicker ways know
# fewer dtypes.
EXPERTS = "eager"
# What models are run on whose positions have no end (ALiBi): what they were trained on, by their
# authors and lm-eval alike.
UNBOUNDED = 2048


def model_class(config: Mapping[str, Any]) -> Any:
    """What builds a model with this config: transformers' Auto class, or our own class."""
    if not is_per_layer(config):
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM
    return own_class(str(config["model_type"]))


def transformers_config(config: Mapping[str, Any]) -> Any:
    """transformers' object of a config.json, which says nothing of a dtype.

    Raises InvalidInput, in one line, where its class refuses the values.
    """
    from transformers import AutoConfig

    said = spelled(config).items()
    values = {key: value for key, value in said if key not in ("dtype", "torch_dtype")}
    model_type = values.pop("model_type")
    values = deepcopy(values)  # transformers writes into what it is given
    try:
        if is_per_layer(config):
            return own_class(model_type).config_class(**values)
        return AutoConfig.for_model(model_type, **values)
    except Exception as error:
        # Its validators raise errors of many types; to whoever wrote the file all mean the same.
        raise InvalidInput(f"config.json is refused: {one_line(error)}") from error


def longest_window(made: Any) -> int:
    """Tokens that a model is run on at most, by transformers' object of its config."""
    return int(getattr(made, "max_position_embeddings", UNBOUNDED))


def build(config: Mapping[str, Any], dtype: torch.dtype = torch.float32) -> Any:
    """transformers' model with this config and fresh weights, on the device that is the default."""
    make = model_class(config)
    made = transformers_config(config)
    # The class's own code, which takes every dtype and width.
    made._experts_implementation = EXPERTS
    make = make._from_config if is_per_layer(config) else make.from_config
    # transformers' own choice: sdpa, but eager where the class does what sdpa cannot (soft caps).
    return make(made, dtype=dtype)


def saved_tensors(model: Any) -> dict[str, torch.Tensor]:
    """What a model is saved as: its parameters, a tied one once, and buffers that are kept."""
    held, kept = dict(model.named_parameters()), model.state_dict().keys()
    return held | {name: each for name, each in model.named_buffers() if name in kept}


def decoder_of(config: Mapping[str, Any]) -> Any:
    """The decoder of a model with this config and no weights (meta tensors)."""
    with torch.device("meta"):
        return build(config).model


def one_line(error: BaseException) -> str:
    """What an error of transformers says, in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
