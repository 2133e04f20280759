"""transformers' model of a checkpoint: whole in memory, or without weights for the block loop.

Whole models are for zero-shot tasks, speed, recovery and export. A per-layer model is built by
our own installed class; the code beside its weights is never run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bipline.base.errors import InvalidInput, Refused
from bipline.model.built import EXPERTS, model_class, one_line, transformers_config
from bipline.model.checkpoint import Checkpoint
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

    It is the checkpoint's in every tensor, bit by bit in ``dtype``, so that whatever is measured
    with it is measured on the model that the block loop runs. Raises InvalidInput when
    transformers cannot build it or reports weights that are missing, unexpected or of another
    shape: a model that loads with fresh random weights must never be measured. Raises Refused, at
    the first tensor, where transformers holds other tensors than the checkpoint.
    """
    checkpoint = open_checkpoint(model) if isinstance(model, Path) else model
    built, report = _loaded(checkpoint, dtype)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report.get(kind):
            first = min(str(key) for key in report[kind])
            found = f"{kind.replace('_', ' ')} on loading: {first}"
            raise InvalidInput(f"{checkpoint.location}: {found}")
    hold_to_checkpoint(built, checkpoint)
    return built.eval()


def _loaded(checkpoint: Checkpoint, dtype: torch.dtype) -> tuple[Any, dict[str, Any]]:
    from transformers import GenerationConfig

    config = transformers_config(checkpoint.config)
    if dtype == torch.float64:
        config._experts_implementation = EXPERTS
    try:
        loaded: tuple[Any, dict[str, Any]] = model_class(checkpoint.config).from_pretrained(
            checkpoint.directory,
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
    return loaded


@torch.no_grad()
def hold_to_checkpoint(built: Any, checkpoint: Checkpoint) -> None:
    """Raise Refused unless a model of transformers has a checkpoint's tensors and no others.

    The checkpoint's are read in pieces; their digests are known afterwards.
    """
    # Parameters list a tied output matrix once, as the checkpoint does.
    held = dict(built.named_parameters())
    places = checkpoint.places
    if odd := sorted(held.keys() ^ {place.name for place in places.values()}):
        raise Refused(
            f"{checkpoint.location}: transformers and bipline do not find the same tensors in it: "
            f"{odd[0]} is found by one of them"
        )
    seen = dict.fromkeys(places, 0)
    for name, piece in checkpoint.stream((name, None) for name in checkpoint.tensors):
        rows = places[name].of(held[places[name].name])[seen[name] : seen[name] + len(piece)]
        seen[name] += len(piece)
        if not _same_bits(rows, piece):
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
