"""transformers' model of a checkpoint: whole in memory, or without weights for the block loop.

Whole models are for zero-shot tasks, speed, recovery and export. A per-layer model is built by
our own installed class; the code beside its weights is never run.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bipline.base.errors import InvalidInput, Refused
from bipline.model.built import (
    EXPERTS,
    model_class,
    one_line,
    saved_tensors,
    transformers_config,
)
from bipline.model.checkpoint import Checkpoint
from bipline.model.families import (
    Family,
    block_parts,
    build_of,
    family_in,
    predicting_prefixes,
)
from bipline.model.fused import stored_parts
from bipline.model.opening import open_checkpoint
from bipline.storage.folder import Folder
from bipline.storage.strict_json import parse_object

GENERATION = "generation_config.json"
LONGEST_REASON = 200


def import_libraries() -> None:
    """Import what transformers loads on first use, so that no stage's seconds hold it."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    for lazy in (AutoConfig, AutoModelForCausalLM, AutoTokenizer):
        _ = lazy.__name__
    from transformers.models.llama import modeling_llama  # noqa: F401


def load_model(model: Path | Checkpoint, dtype: torch.dtype) -> Any:
    """transformers' model of a checkpoint or its directory, in eval mode, with no code of its own.

    Of a decoder that lies in another model it is the decoder alone.

    It is the checkpoint's in every tensor, bit by bit in ``dtype``, so that whatever is measured
    with it is measured on the model that the block loop runs. Raises InvalidInput when
    transformers cannot build it or reports weights that are missing, unexpected or of another
    shape: a model that loads with fresh random weights must never be measured. Raises Refused, at
    the first tensor, where transformers holds other tensors than the checkpoint.
    """
    checkpoint = open_checkpoint(model) if isinstance(model, Path) else model
    built, report = _loaded(checkpoint, dtype)
    refuse_odd_keys(report, checkpoint)
    hold_to_checkpoint(built, checkpoint)
    return built.eval()


def refuse_odd_keys(report: Mapping[str, Any], checkpoint: Checkpoint) -> None:
    """Raise InvalidInput for what transformers reports of tensors that do not fit its class."""
    left_out = predicting_prefixes(checkpoint.family, checkpoint.config)
    ignored = build_of(checkpoint.family).ignored + checkpoint.family.ignored
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        found = [key for key in map(str, report.get(kind, ())) if not key.startswith(left_out)]
        if odd := [key for key in found if not key.endswith(ignored)]:
            first = min(odd)
            named = f"{kind.replace('_', ' ')} on loading: {first}"
            raise InvalidInput(f"{checkpoint.location}: {named}")


def _loaded(checkpoint: Checkpoint, dtype: torch.dtype) -> tuple[Any, dict[str, Any]]:
    from transformers import GenerationConfig

    config, (make, place, state) = transformers_config(checkpoint.config), _source(checkpoint)
    if dtype == torch.float64:
        config._experts_implementation = EXPERTS
    try:
        loaded: tuple[Any, dict[str, Any]] = make.from_pretrained(
            place,
            state_dict=state,
            config=config,
            # The model's own are not read: nothing that we measure may follow them.
            generation_config=GenerationConfig(),
            dtype=dtype,
            trust_remote_code=False,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (AttributeError, KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise InvalidInput(
            f"{checkpoint.location}: transformers cannot load it: {one_line(error)}"
        ) from error
    # Whoever looks for its files, as peft does, looks here, however it was loaded.
    loaded[0].name_or_path = loaded[0].config.name_or_path = str(checkpoint.directory)
    return loaded


def _source(checkpoint: Checkpoint) -> tuple[Any, Path | None, dict[str, Tensor] | None]:
    """What builds a checkpoint's model, and from where: its directory, or its parameters here."""
    family = _class_of(checkpoint)
    if checkpoint.family.fused == family.fused and checkpoint.nesting is None:
        return model_class(checkpoint.config), checkpoint.directory, None
    import transformers

    return getattr(transformers, family.architecture), None, _parameters(checkpoint)


def stored_apart(checkpoint: Checkpoint) -> dict[str, dict[str, int]]:
    """Of what is stored as one and its class has apart: the parameters, and how many rows of each.

    By the full name of what is stored; nothing where the class has all as it is stored.
    """
    family, fused = checkpoint.family, _class_of(checkpoint).fused
    found: dict[str, dict[str, int]] = {}
    if family.fused == fused:
        return found
    for index in range(checkpoint.shape.num_hidden_layers):
        prefix, rows = checkpoint.block_prefix(index), checkpoint.block_rows(index)
        for name, parts in block_parts(family, checkpoint.config, index).items():
            if name not in (own := stored_parts(fused, parts)):
                found[prefix + name] = {
                    prefix + each: sum(rows[part] for part in inside)
                    for each, inside in own.items()
                }
    return found


def _class_of(checkpoint: Checkpoint) -> Family:
    return family_in(checkpoint.config)


def _parameters(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The parameters of a checkpoint's class, where it has them otherwise than they are stored."""
    apart, found = stored_apart(checkpoint), dict[str, Tensor]()
    for name in checkpoint.places:
        tensor, rows = checkpoint.tensor(name), apart.get(name)
        own = dict(zip(rows, tensor.split(list(rows.values())), strict=True)) if rows else None
        found.update(own or {name: tensor})
    return found


@torch.no_grad()
def hold_to_checkpoint(built: Any, checkpoint: Checkpoint) -> None:
    """Raise Refused unless a model of transformers has a checkpoint's tensors and no others.

    The checkpoint's are read in pieces; their digests are known afterwards.
    """
    held, places, apart = (
        saved_tensors(built),
        checkpoint.places,
        stored_apart(checkpoint),
    )
    own = {name: apart.get(name, (place.name,)) for name, place in places.items()}
    if odd := sorted(held.keys() ^ {each for names in own.values() for each in names}):
        raise Refused(
            f"{checkpoint.location}: transformers and bipline do not find the same tensors in it: "
            f"{odd[0]} is found by one of them"
        )
    first, current, whole = 0, "", next(iter(held.values()))
    for name, piece in checkpoint.stream((name, None) for name in places):
        if name != current:
            first, current = 0, name
            parts = [held[each] for each in own[name]]
            whole = torch.cat(parts) if name in apart else places[name].of(parts[0])
        first += len(piece)
        if not _same_bits(whole[first - len(piece) : first], piece):
            raise Refused(
                f"{checkpoint.location}: transformers loads other values of {name} than it holds"
            )


def _same_bits(one: Tensor, other: Tensor) -> bool:
    bits = (each.to("cpu", one.dtype).contiguous().view(torch.uint8) for each in (one, other))
    return one.shape == other.shape and torch.equal(*bits)


def check_generation(folder: Folder) -> None:
    """Read the settings for generating as transformers will; they are kept as they are.

    Raises InvalidInput for a file that nobody could load the model with.
    """
    if GENERATION not in folder.names():
        return
    where = f"{folder.location}/{GENERATION}"
    value = parse_object(folder.read(GENERATION), where, "set of generation settings", "mend it")
    from transformers import GenerationConfig

    try:
        GenerationConfig.from_dict(value).validate()
    except Exception as error:
        reason = f"transformers refuses it: {one_line(error)[:LONGEST_REASON]}"
        raise InvalidInput(f"{where}: {reason}; correct or remove it") from error
