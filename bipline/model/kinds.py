"""Which kind of decoder a ``model_type`` is nearest to, by the tensors of transformers' class."""

from __future__ import annotations

from pathlib import Path

import torch

from bipline.base.errors import InvalidInput
from bipline.model import builds
from bipline.model.builds import Build, build_named
from bipline.model.family import families, family_names, family_of

HOW = "docs/adding.md shows how"
NAMED = 3


def nearest_kind(model_type: str) -> InvalidInput:
    """What to tell whoever asks for a ``model_type`` that is no family."""
    known = f"model_type {model_type[:60]!a} is not supported"
    if (inner := _inside(model_type)) in families():
        return InvalidInput(
            f"{known}; it holds a {inner!r} beside others: give that decoder alone, with its "
            f"tensors as a {family_of(inner).architecture} has them"
        )
    if (names := _tensors(model_type)) is None:
        supported = ", ".join(family_names())
        return InvalidInput(
            f"{known}, and transformers builds no language model of it; supported: {supported}"
        )
    odd, build = min(
        ((_odd(names, each), each) for each in _builds()), key=lambda pair: len(pair[0])
    )
    nearest = f"the nearest kind is {build.kind!r}"
    if not odd:
        return InvalidInput(f"{known} yet; it has the tensors of kind {build.kind!r}: {HOW}")
    more = f" and {len(odd) - NAMED} more" if len(odd) > NAMED else ""
    return InvalidInput(f"{known}; {nearest}, but {', '.join(odd[:NAMED])}{more}; {HOW}")


def _inside(model_type: str) -> str:
    """The ``model_type`` of the decoder that a model holds beside others; its own for most."""
    from transformers import AutoConfig

    try:
        return str(AutoConfig.for_model(model_type).get_text_config(decoder=True).model_type)
    except Exception:
        # As below.
        return ""


def _builds() -> list[Build]:
    files = sorted(Path(str(builds.__file__)).parent.glob("*.json"))
    return [build_named(path.stem) for path in files]


def _tensors(model_type: str) -> set[str] | None:
    """The names inside one block of transformers' class; None where there is none."""
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type))
        blocks = next(each for each in model.modules() if isinstance(each, torch.nn.ModuleList))
    except Exception:
        # Types that are none, or no language models, fail in as many ways as there are of them.
        return None
    return {name for name, _ in blocks[0].named_parameters()}


def _odd(names: set[str], build: Build) -> list[str]:
    """What a block has that no block of a build has, and what it lacks; norms may be missing."""
    may = {name for held in build.biases.values() for name in held} | set(build.head_norms)
    must = set(build.held)
    extra = sorted(names - must - may)
    return [f"it has {name}" for name in extra] + [f"lacks {each}" for each in sorted(must - names)]
