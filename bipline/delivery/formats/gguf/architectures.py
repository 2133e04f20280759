"""Architectures of llama.cpp as data: what each of them reads, and whose models it may hold.

What llama.cpp calls an architecture is code of its own for each family. ``architectures.json`` says
what each one reads; it was found by running llama.cpp on models of every kind (docs/export.md).
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Architecture(_Table):
    """What llama.cpp reads under one name.

    ``name``: its key, but where one name of llama.cpp stands for several; ``build``: the only build
    whose blocks it has. ``interleaved``: rotary pairs are neighbouring rows where transformers has
    halves, so query and key rows are put in that order. ``biases``: the places where it reads
    biases. ``rope_factors``: whether it reads a tensor of frequency factors. ``any_head_dim``:
    whether heads need not make up hidden_size. ``per_block``: whether blocks may differ in width.
    ``partly_turned``: whether a part of each head may turn. ``activation``: the one of its FFN.
    ``tied``: whether its output matrix is the embedding; None for either.

    ``renamed``: modules of a block under other names than :data:`bipline.delivery.formats.gguf.
    tensors.INSIDE` has; ``joined``: matrices that are stored one behind the other as one.
    ``numbers``: keys of a config that are written under llama.cpp's, ``always`` those that it takes
    for granted, ``flags`` those that are written as they are; ``required``: what a config must say,
    ``scaled_by_head_dim`` the key that must be head_dim.

    ``slides``: whether blocks may attend to a window alone, ``slides_with_blocks`` the one number
    of blocks with which they may; ``sliding_theta``: whether those turn by a theta of their own.
    ``unturned_every``: blocks of such a number, and no others, turn nothing by its position.
    """

    name: str = ""
    build: str = ""
    interleaved: bool = False
    biases: frozenset[str] = frozenset()
    rope_factors: bool = False
    any_head_dim: bool = True
    per_block: bool = False
    partly_turned: bool = False
    activation: str = "silu"
    tied: bool | None = None
    renamed: dict[str, str] = Field(default_factory=dict)
    joined: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    numbers: dict[str, str] = Field(default_factory=dict)
    always: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    required: dict[str, Any] = Field(default_factory=dict)
    scaled_by_head_dim: str = ""
    slides: bool = False
    slides_with_blocks: int = 0
    sliding_theta: bool = False
    unturned_every: int = 0


class _Architectures(_Table):
    """The file: by model_type the architectures that may hold a model, and what each reads."""

    families: dict[str, tuple[str, ...]]
    architectures: dict[str, Architecture]


@cache
def _table() -> _Architectures:
    file = Path(__file__).with_name("architectures.json")
    return _Architectures.model_validate_json(file.read_bytes())


def candidates(model_type: str) -> list[Architecture]:
    """What may hold a family's models, the first that does so first."""
    table = _table()
    found = {name: table.architectures[name] for name in table.families.get(model_type, ())}
    return [each.model_copy(update={"name": each.name or name}) for name, each in found.items()]


def known_families() -> tuple[str, ...]:
    """Every model_type that an architecture may hold."""
    return tuple(_table().families)


def architectures_for(model_type: str, per_layer: bool) -> tuple[str, ...]:
    """The names of those that may hold a family's models, blocks of unequal width too."""
    found = (each.name for each in candidates(model_type) if per_layer or not each.per_block)
    return tuple(dict.fromkeys(found))
