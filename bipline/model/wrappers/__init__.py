"""Wrappers as data: models that hold a decoder of a known family beside a vision tower or others.

A file of this folder is a ``model_type`` whose config.json has the decoder's in ``text_config``,
and whose weights have the decoder's tensors behind prefixes. Whoever opens such a model sees the
decoder alone, under the names that it has by itself; what lies beside it is copied unchanged.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from bipline.base.errors import InvalidInput
from bipline.model.families import family_of

TEXT_CONFIG = "text_config"
TIED = "tie_word_embeddings"
# What a decoder's config takes from around it where it says nothing itself.
SHARED = ("dtype", "torch_dtype", "transformers_version")
# What is said once for the whole model.
OF_THE_WHOLE = ("architectures", "transformers_version", "tokenizer_class", "_name_or_path")


class Wrapper(BaseModel):
    """What one ``model_type`` has around its decoder.

    ``prefixes`` are the ways in which files are found: where the decoder's tensors lie by what
    their own names begin with; transformers' class has them in the last of these. ``beside`` is
    what names of all other tensors begin with, ``keys`` what its config may say.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    architecture: str
    decoder: str
    prefixes: tuple[dict[str, str], ...]
    beside: tuple[str, ...]
    keys: tuple[str, ...]
    # Whether its class ties the output matrix to the embedding where a config says nothing, and
    # sizes that the decoder's class takes there.
    tied: bool
    # Keys of its decoder's config that the decoder alone follows and the whole class does not.
    not_followed: tuple[str, ...]
    text_defaults: dict[str, int]

    def prefixes_of(self, names: Iterable[str], where: str) -> dict[str, str]:
        """The way in which these tensors lie. Raises InvalidInput for none of those known."""
        held = list(names)
        for prefixes in self.prefixes:
            if any(name.startswith(prefixes["model."]) for name in held):
                return prefixes
        known = " nor ".join(each["model."] for each in self.prefixes)
        raise InvalidInput(f"{where}: no tensor of its decoder: none begins with {known}")


@dataclass(frozen=True)
class Nesting:
    """What lies around a checkpoint's decoder: a config without ``text_config``, and other tensors.

    ``prefixes`` are those of the decoder's tensors where they lie, by those of their own names.
    """

    wrapper: Wrapper
    config: dict[str, Any]
    prefixes: dict[str, str]
    beside: frozenset[str]

    def stored_name(self, name: str) -> str:
        """Where a tensor of the decoder lies, by its own name; others have one name."""
        for own, stored in self.prefixes.items():
            if name.startswith(own) and name not in self.beside:
                return stored + name.removeprefix(own)
        return name

    def whole_config(self, decoder: Mapping[str, Any]) -> dict[str, Any]:
        """The config.json of the whole model with a decoder of this config.

        Raises InvalidInput for a decoder of another family, which its class takes for none.
        """
        if (found := decoder["model_type"]) != self.wrapper.decoder:
            raise InvalidInput(
                f"a {self.config['model_type']} holds no {found}, which alone has a class for "
                "these widths; choose another ratio"
            )
        inside = {key: value for key, value in decoder.items() if key not in OF_THE_WHOLE}
        tied = {TIED: bool(decoder.get(TIED))}
        return {**self.config, **tied, TEXT_CONFIG: inside}


@cache
def wrappers() -> dict[str, Wrapper]:
    """Every wrapper by its ``model_type``."""
    files = sorted(Path(__file__).parent.glob("*.json"))
    return {path.stem: Wrapper.model_validate_json(path.read_bytes()) for path in files}


def wrapper_of(config: Mapping[str, Any]) -> Wrapper | None:
    """The wrapper that a config.json is of; None for a decoder alone."""
    return wrappers().get(str(config.get("model_type")))


def decoder_config(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The decoder's config out of a wrapper's, as a decoder alone would have it.

    Raises InvalidInput where there is none, or one of another family.
    """
    wrapper = wrapper_of(config)
    inside = config.get(TEXT_CONFIG)
    if wrapper is None or not isinstance(inside, dict):
        raise InvalidInput(f"{where}: has no {TEXT_CONFIG}, which says how its decoder is built")
    if (found := inside.get("model_type", wrapper.decoder)) != wrapper.decoder:
        raise InvalidInput(f"{where}: {TEXT_CONFIG} is of {found!r}, not of {wrapper.decoder}")
    for key in wrapper.not_followed:
        if inside.get(key) is not None:
            raise InvalidInput(
                f"{where}: {TEXT_CONFIG}.{key} is {inside[key]!r}, which a {wrapper.architecture} "
                "does not compute with and its decoder alone does; remove it"
            )
    shared = {key: config[key] for key in SHARED if key in config}
    # Of the two places where it may be said, the class reads the outer one.
    own = {
        "model_type": wrapper.decoder,
        "architectures": [family_of(wrapper.decoder).architecture],
        TIED: config.get(TIED, wrapper.tied),
    }
    return {**shared, **wrapper.text_defaults, **inside, **own}


def nesting_of(
    config: Mapping[str, Any], names: Iterable[str], where: str
) -> tuple[Nesting, dict[str, str]]:
    """What lies around a decoder, and by the names of all stored tensors those they go under.

    Raises InvalidInput for tensors that lie in no known way.
    """
    wrapper, held = wrapper_of(config), list(names)
    assert wrapper  # noqa: S101
    prefixes = wrapper.prefixes_of(held, where)
    beside = frozenset(name for name in held if name.startswith(wrapper.beside))
    own = {name: name for name in beside}
    for begins, stored in prefixes.items():
        inside = (name for name in held if name.startswith(stored) and name not in beside)
        own.update({name: begins + name.removeprefix(stored) for name in inside})
    if odd := [name for name in held if name not in own]:
        raise InvalidInput(f"{where}: tensor {odd[0]} does not belong to a {config['model_type']}")
    kept = {key: value for key, value in config.items() if key in wrapper.keys}
    return Nesting(wrapper, kept, prefixes, beside), own
