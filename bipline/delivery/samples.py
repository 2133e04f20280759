"""Samples: how the dense and the packaged model go on from the same beginnings, token by token.

The likeliest token is taken each time, in float32, so one machine writes the same again. They are
for looking at, and no measurement.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from bipline.base.machine import free_memory
from bipline.base.progress import note, track
from bipline.delivery.verification import decoded
from bipline.model.loading import load_model
from bipline.model.memory import SHARE_OF_AVAILABLE, gigabytes
from bipline.model.opening import open_checkpoint
from bipline.model.token_ids import refusing_failures, token_ids
from bipline.model.tokenizer import load_tokenizer

PROMPTS = ("Once upon a time", "The most important thing to know about water is")
NEW_TOKENS = 32
BYTES_OF_FLOAT32 = 4


@dataclass(frozen=True)
class Sample:
    """A beginning, and by model how it went on."""

    prompt: str
    texts: Mapping[str, str]


def continued(models: Mapping[str, Path]) -> tuple[Sample, ...]:
    """Samples of models in these directories, one loaded at a time.

    There are none, and a note says so, where a model does not fit into memory whole.
    """
    told: dict[str, list[str]] = {}
    for name, directory in track(list(models.items()), "samples of text"):
        needed = open_checkpoint(directory).parameters * BYTES_OF_FLOAT32
        if needed > free_memory() * SHARE_OF_AVAILABLE:
            note(f"no samples of text: the {name} model takes {gigabytes(needed)} in float32")
            return ()
        told[name] = _texts(directory)
    return tuple(
        Sample(prompt, {name: texts[number] for name, texts in told.items()})
        for number, prompt in enumerate(PROMPTS)
    )


@torch.no_grad()
def _texts(directory: Path) -> list[str]:
    model, tokenizer = load_model(directory, torch.float32), load_tokenizer(directory)
    longest = int(getattr(model.config, "max_position_embeddings", 0) or 0)
    ends, texts = {tokenizer.eos_token_id}, []
    for ids in token_ids(tokenizer, PROMPTS, special_tokens=True):
        room = min(NEW_TOKENS, longest - len(ids)) if longest else NEW_TOKENS
        if not ids or room < 1:
            texts.append("")
            continue
        new = decoded(model, torch.tensor([ids]), True, room)[len(ids) :]
        end = next((place for place, token in enumerate(new) if token in ends), len(new))
        with refusing_failures(tokenizer):
            texts.append(tokenizer.decode(new[:end], skip_special_tokens=True))
    return texts
