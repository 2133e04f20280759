"""Asking a model the questions of tasks, as ``evaluate`` does: helpers of the tests of tasks."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from bipline.model.block_loop import BlockLoop
from bipline.model.loading import load_model
from bipline.model.opening import open_checkpoint
from bipline.model.tokenizer import load_tokenizer
from bipline.quality.zero_shot import Measured, model_questions, zero_shot
from bipline.quality.zero_shot_questions import Questions
from bipline.settings.protocol import Protocol


def written(path: Path, rows: Sequence[Any]) -> Path:
    """Rows as JSON Lines."""
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def questions_of(model: Path, tasks: Mapping[str, Path], **protocol: Any) -> dict[str, Questions]:
    """What a model would be asked."""
    checkpoint, tokenizer = open_checkpoint(model), load_tokenizer(model)
    return model_questions(checkpoint, tokenizer, tasks, Protocol(**protocol))


def measured(
    model: Path, tasks: Mapping[str, Path], streamed: bool = False, **protocol: Any
) -> dict[str, Measured]:
    """What a model answers: whole in memory, or block by block."""
    questions = questions_of(model, tasks, **protocol)
    runner: Any = (
        BlockLoop(open_checkpoint(model)) if streamed else load_model(model, torch.float32)
    )
    return zero_shot(runner, load_tokenizer(model), questions, Protocol(**protocol).batch_size)
