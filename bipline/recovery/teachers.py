"""The dense model's predictions: by running it beside the training, or kept on disk before it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from bipline.base.progress import track
from bipline.model.block_loop import BlockLoop, predicted
from bipline.model.checkpoint import Checkpoint
from bipline.model.hidden_states import CHUNK_WINDOWS
from bipline.model.loading import load_model
from bipline.recovery.examples import Examples
from bipline.recovery.objectives import Predictions
from bipline.recovery.sealed import hold_to_seal, is_sealed, seal


class LiveTeacher:
    """The dense model, whole in memory."""

    def __init__(self, dense: Checkpoint, dtype: torch.dtype, device: torch.device) -> None:
        self.model: Any = load_model(dense, dtype).to(device).requires_grad_(False)

    @torch.no_grad()
    def predictions(self, windows: Tensor, numbers: Tensor, temperature: float) -> Predictions:
        """Log-probabilities of the whole vocabulary."""
        logits = self.model(input_ids=windows, use_cache=False).logits[:, :-1].float()
        return Predictions(torch.log_softmax(logits / temperature, dim=-1))


class KeptTeacher:
    """The likeliest tokens of every window, written by :func:`keep_predictions`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def predictions(self, windows: Tensor, numbers: Tensor, temperature: float) -> Predictions:
        """Log-probabilities at the temperature they were kept at, of the tokens that were."""
        rows = [self._row(int(number)) for number in numbers]
        logs, ids = (torch.stack(each).to(windows.device) for each in zip(*rows, strict=True))
        return Predictions(logs.float(), ids.long())

    def _row(self, number: int) -> tuple[Tensor, Tensor]:
        chunk, row = divmod(number, CHUNK_WINDOWS)
        with safe_open(self.folder / _name(chunk), framework="pt") as file:
            return file.get_slice("logs")[row], file.get_slice("ids")[row]


def keep_predictions(
    loop: BlockLoop, examples: Examples, top_k: int, temperature: float, folder: Path
) -> None:
    """Run the dense model over all windows, block by block, and keep its ``top_k`` tokens.

    It may be larger than memory. What an earlier run wrote whole is taken as it is.
    """
    if is_sealed(folder):
        hold_to_seal(folder)
        return
    folder.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        states = loop.states(examples.windows)
        loop.embed_into(states, examples.windows)
        layers = loop.checkpoint.shape.num_hidden_layers
        for block in track(loop.blocks(), "dense model on the recovery text", layers):
            block.advance(states)
        output = loop.output_weight()
        chunks = examples.windows.split(CHUNK_WINDOWS)
        for number, chunk in enumerate(track(chunks, "keep the dense model's predictions")):
            kept = [
                _likeliest(loop.token_logits(hidden.to(loop.device), output), top_k, temperature)
                for hidden, _ in predicted(states.chunk(number), chunk)
            ]
            shape = chunk.shape[0], chunk.shape[1] - 1, -1
            logs, ids = (torch.cat(each).view(shape) for each in zip(*kept, strict=True))
            save_file({"logs": logs, "ids": ids}, folder / _name(number))
    seal(folder)


def _likeliest(logits: Tensor, top_k: int, temperature: float) -> tuple[Tensor, Tensor]:
    logs, ids = torch.log_softmax(logits.float() / temperature, dim=-1).topk(top_k, dim=-1)
    return logs.cpu().contiguous(), ids.to("cpu", torch.int32).contiguous()


def _name(chunk: int) -> str:
    return f"teacher-{chunk:06d}.safetensors"
