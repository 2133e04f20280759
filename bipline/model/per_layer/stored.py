"""How a config.json says the widths of every block: by transformers' own ``per_layer_config``.

It has the sizes of a block under its number; a size that is not there is that of the widest block.
Inside bipline, and in models of before, each size is a list.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bipline.base.errors import InvalidInput
from bipline.model.shapes import PER_LAYER_LISTS, is_per_layer

KEY = "per_layer_config"


def stored_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config as its file has it; ``config`` says the widths in lists, where blocks differ."""
    if not is_per_layer(config):
        return dict(config)
    layers = config["num_hidden_layers"]
    # With zeros in front, as transformers writes them: sorted texts are then in order.
    places = [str(index).zfill(len(str(layers - 1))) for index in range(layers)]
    blocks = {
        place: {size: config[listed][index] for size, listed in PER_LAYER_LISTS.items()}
        for index, place in enumerate(places)
    }
    lists = set(PER_LAYER_LISTS.values())
    return {**{key: value for key, value in config.items() if key not in lists}, KEY: blocks}


def listed_widths(blocks: Any, config: Mapping[str, Any], where: str) -> dict[str, list[int]]:
    """The lists that a ``per_layer_config`` stands for; ``config`` is all else, checked.

    Raises InvalidInput for what is no such table, or says otherwise than lists beside it.
    """
    layers = config.get("num_hidden_layers") or 0
    lists: dict[str, list[Any]] = {
        listed: [config.get(size)] * layers for size, listed in PER_LAYER_LISTS.items()
    }
    if not isinstance(blocks, dict):
        raise InvalidInput(f"{where}: {KEY} is not an object of blocks by number")
    seen = set()
    for place, sizes in blocks.items():
        index = int(place) if place.isascii() and place.isdigit() and len(place) < 10 else layers
        if index >= layers or index in seen:
            raise InvalidInput(f"{where}: {KEY} has a block {place!a:.20}; there are {layers}")
        seen.add(index)
        if not isinstance(sizes, dict) or not PER_LAYER_LISTS.keys() >= sizes.keys():
            known = ", ".join(PER_LAYER_LISTS)
            raise InvalidInput(f"{where}: {KEY} of block {index} says other than {known}")
        for size, value in sizes.items():
            lists[PER_LAYER_LISTS[size]][index] = value
    for listed, found in lists.items():
        if config.get(listed, found) != found:
            raise InvalidInput(f"{where}: {listed} says other widths than {KEY}")
    return lists
