"""What is compared: models and texts by short names, resolved down to their digests.

Everything that can be seen to fail is found here, before a weight is computed with: texts that
are too short for the windows, calibration text that is also evaluation text, windows longer than
a model takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from bipline.base.errors import InvalidInput
from bipline.comparison.grid import compensation_bytes_of
from bipline.compression import calibrate as core
from bipline.compression.criteria import FORWARD, load_criterion
from bipline.compression.gradient_sums import gradient_memory
from bipline.model.block_loop import BlockLoop
from bipline.model.checkpoint import Checkpoint
from bipline.model.devices import choose_device, torch_dtype
from bipline.model.memory import memory_need
from bipline.model.opening import open_checkpoint
from bipline.model.resolve import resolve_model, resolve_text
from bipline.model.tokenizer import tokenizer_of
from bipline.quality.perplexity import text_windows
from bipline.settings.protocol import Protocol
from bipline.storage.documents import read_documents
from bipline.storage.store import LocalStore
from bipline.values.combination import Combination
from bipline.values.resolution import Resolution, ResolvedText

HUB = "hf:"


@dataclass(frozen=True)
class Settings:
    """How all of it is run. ``max_memory`` is in bytes, for all processes together."""

    samples: int = 128
    seqlen: int = 128
    protocol: Protocol = field(default_factory=Protocol)
    device: str = "auto"
    micro_batch: int | None = None
    max_memory: int | None = None


@dataclass(frozen=True)
class Inputs:
    """Models with the evaluation texts, and calibration texts, by the names of the grid."""

    models: dict[str, Resolution]
    calibrations: dict[str, ResolvedText]

    @property
    def texts(self) -> dict[str, Path]:
        """Where the evaluation texts lie."""
        first = next(iter(self.models.values()))
        return {name: Path(text.location) for name, text in first.texts.items()}


def named(what: str, sources: Sequence[str]) -> dict[str, str]:
    """Sources by their last name, or by the whole of it where two are called the same.

    Raises InvalidInput for a source that is given twice, and where there is none.
    """
    if not sources:
        raise InvalidInput(f"{what}: give at least one")
    if len(set(sources)) < len(sources):
        raise InvalidInput(f"{what}: one is given twice")
    short = {source: _short(source) for source in sources}
    alike = [list(short.values()).count(name) > 1 for name in short.values()]
    return {
        source if shared else short[source]: source
        for source, shared in zip(sources, alike, strict=True)
    }


def resolve_inputs(
    models: dict[str, str], calibrations: dict[str, str], texts: dict[str, str], downloads: Path
) -> Inputs:
    """Resolve all of it; what is remote is downloaded. Raises as :mod:`bipline.model.resolve`."""
    if not texts:
        raise InvalidInput("no evaluation text: give --text NAME=FILE")
    evaluation = {name: resolve_text(source, downloads) for name, source in texts.items()}
    return Inputs(
        {
            name: Resolution(model=resolve_model(source, downloads), texts=evaluation)
            for name, source in models.items()
        },
        {name: resolve_text(source, downloads) for name, source in calibrations.items()},
    )


def opened(resolution: Resolution) -> Checkpoint:
    """The model as it was resolved: its weights are compared when they have been read."""
    return open_checkpoint(resolution.model.location, resolution.model.tensor_digest)


def draw_windows(
    inputs: Inputs,
    settings: Settings,
    model: str,
    calibration: str,
    seed: int,
    place: tuple[LocalStore, str],
) -> torch.Tensor:
    """The calibration windows ``[samples, seqlen]`` of a model's tokenizer, in the store by key.

    Raises InvalidInput for too little text, and for text that is also evaluation text.
    """
    store, key = place
    if (found := store.find("calibrate", key)) is None:
        drawn = core.calibrate(
            Path(inputs.models[model].model.location),
            {Path(inputs.calibrations[calibration].location): 1.0},
            settings.samples, settings.seqlen, seed, inputs.texts.values(),
        )  # fmt: skip
        with store.write("calibrate", key, core.KIND) as writer:
            core.save_calibration(drawn, writer)
        return drawn.token_ids
    return core.load_calibration(found.open()).token_ids


def check_windows(
    inputs: Inputs,
    settings: Settings,
    model: str,
    tried: Sequence[Combination],
    drawn: Sequence[torch.Tensor],
) -> int:
    """Hold all windows of a model against it; the memory in bytes that one process needs at most.

    ``tried`` are the combinations that are not refused yet.
    Raises InvalidInput for windows that the model cannot take.
    """
    checkpoint = opened(inputs.models[model])
    device = choose_device(settings.device)
    loop = BlockLoop(checkpoint, torch_dtype(settings.protocol.dtype), device, settings.micro_batch)
    tokenizer, protocol = tokenizer_of(checkpoint.folder), settings.protocol
    needs = []
    for path in inputs.texts.values():
        windows = text_windows(tokenizer, read_documents(path), protocol.seqlen, protocol.bos)
        loop.check(windows)
        needs.append(memory_need(loop, windows, logits=True).total)
    backwards = any(
        load_criterion(each.criterion.name).NEEDS not in (*FORWARD, "weights") for each in tried
    )
    for windows in drawn:
        loop.check(windows)
        # Beside the pass over the same windows.
        corrects = max(
            (compensation_bytes_of(checkpoint, each, *windows.shape) for each in tried), default=0
        )
        # Searches keep what a backward pass keeps.
        forward = memory_need(loop, windows, logits=False).total
        backward = gradient_memory(loop, windows).total if backwards else 0
        needs.append(max(forward + corrects, backward))
    return max(needs)


def _short(source: str) -> str:
    if source.startswith(HUB):
        return source.removeprefix(HUB)
    name = Path(source).name
    return Path(name).stem if name.endswith((".txt", ".jsonl")) else name or source
