"""Speed: prompt processing and greedy decoding of models that take turns on this machine.

Repeat i of every model comes before repeat i + 1 of any, in alternating order, so that what else
the machine does falls on all of them alike.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from typing import Protocol as Interface

import torch

from bipline.base.errors import EnvironmentFailure
from bipline.base.machine import anonymous_memory
from bipline.base.progress import note, track
from bipline.model.checkpoint import Checkpoint
from bipline.model.devices import torch_dtype
from bipline.model.loading import import_libraries, load_model
from bipline.model.memory import available_bytes, gigabytes, watching_memory
from bipline.quality.speed_remarks import remarks
from bipline.settings.protocol import Protocol
from bipline.values.speed import BatchSpeed, Speed, Spread


@dataclass(frozen=True)
class Sample:
    """Seconds of one repeat: until all prompts are processed, and of all decoding after that."""

    prefill: float
    decode: float


class Subject(Interface):
    """What is timed: a model in this process, or one that an engine serves."""

    def sample(self, prompts: torch.Tensor, decoded_tokens: int) -> Sample:
        """Process prompts ``[batch, tokens]`` and decode so many tokens after each."""


class Loaded:
    """transformers' model of a checkpoint: how long it took to load, what memory it takes.

    ``peak_bytes`` counts this process's private memory beyond what it held before, watched over
    loading and the samples of :meth:`warm`.
    """

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device) -> None:
        gc.collect()
        self.checkpoint, self.device, self._before = checkpoint, device, anonymous_memory()
        start = time.perf_counter()
        with watching_memory() as peak:
            self.model = load_model(checkpoint, dtype).to(device)
            peak.sample()
        self.load_seconds = time.perf_counter() - start
        self.peak_bytes = max(0, peak.anonymous - self._before)

    def warm(self, batches: Iterable[torch.Tensor], decoded_tokens: int) -> None:
        """One untimed sample of each batch, with an eye on memory."""
        held = anonymous_memory()
        with watching_memory() as peak:
            for prompts in batches:
                self.sample(prompts, decoded_tokens)
        # Models that were loaded in between are not this one's.
        own = self.model_bytes + max(0, peak.anonymous - held)
        self.peak_bytes = max(self.peak_bytes, own)

    @property
    def model_bytes(self) -> int:
        """Bytes of the weights in memory."""
        return sum(each.numel() * each.itemsize for each in self.model.parameters())

    @torch.no_grad()
    def sample(self, prompts: torch.Tensor, decoded_tokens: int) -> Sample:
        """With the key-value cache, and on after EOS, so that all decode the same count."""
        prompts = prompts.to(self.device)
        start = self._clock()
        output = self.model(prompts, use_cache=True, logits_to_keep=1)
        cache, token = output.past_key_values, output.logits[:, -1:].argmax(-1)
        middle = self._clock()
        for _ in range(decoded_tokens):
            output = self.model(token, past_key_values=cache, use_cache=True)
            cache, token = output.past_key_values, output.logits[:, -1:].argmax(-1)
        return Sample(middle - start, self._clock() - middle)

    def _clock(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def measure_speed(
    models: Mapping[str, Checkpoint], protocol: Protocol, device: torch.device
) -> dict[str, Speed]:
    """Speeds of models that take turns, all in memory at once; the first is the dense one.

    Raises EnvironmentFailure where they do not fit together.
    """
    import_libraries()  # which is no part of loading a model
    dtype = torch_dtype(protocol.dtype)
    _check_room(models, dtype)
    vocabulary = min(each.shape.vocab_size for each in models.values())
    sizes = dict.fromkeys((1, protocol.speed_batch))
    batches = [prompts_of(size, protocol.speed_prompt_tokens, vocabulary) for size in sizes]
    loaded = {name: Loaded(each, dtype, device) for name, each in models.items()}
    for subject in loaded.values():
        subject.warm(batches, protocol.speed_decoded_tokens)
    samples = taken_turns(loaded, batches, protocol.speed_decoded_tokens, protocol.speed_repeats)
    speeds = {
        name: summary(samples[name], batches, protocol, list(models)).model_copy(
            update={"peak_memory_bytes": each.peak_bytes, "load_seconds": each.load_seconds}
        )
        for name, each in loaded.items()
    }
    return _remarked(models, speeds)


def prompts_of(batch_size: int, tokens: int, vocabulary: int, seed: int = 0) -> torch.Tensor:
    """Drawn token ids, ``[batch_size, tokens]``."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(vocabulary, (batch_size, tokens), generator=generator)


def taken_turns(
    subjects: Mapping[str, Subject],
    batches: list[torch.Tensor],
    decoded_tokens: int,
    repeats: int,
) -> dict[str, list[list[Sample]]]:
    """Samples of every subject: a list per batch, ``repeats`` long."""
    found: dict[str, list[list[Sample]]] = {name: [[] for _ in batches] for name in subjects}
    with _no_collection():
        for repeat in track(range(repeats), "measure speed"):
            for place, prompts in enumerate(batches):
                for name in list(subjects)[:: -1 if repeat % 2 else 1]:
                    sample = subjects[name].sample(prompts, decoded_tokens)
                    found[name][place].append(sample)
    return found


@contextmanager
def _no_collection() -> Any:
    """No pause of Python's own falls on one of the models."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def summary(
    samples: list[list[Sample]],
    batches: list[torch.Tensor],
    protocol: Protocol,
    models: list[str],
) -> Speed:
    """What the samples of one model come to; the first batch is of one sequence."""
    told = [
        batch_speed(each, len(prompts), prompts.shape[1], protocol.speed_decoded_tokens)
        for each, prompts in zip(samples, batches, strict=True)
    ]
    one = told[0]
    return Speed(
        prefill_tokens_per_second=one.prefill.best,
        prefill_median_tokens_per_second=one.prefill.median,
        prefill_quartiles=(one.prefill.lower, one.prefill.upper),
        decode_tokens_per_second=one.decode.best,
        decode_median_tokens_per_second=one.decode.median,
        decode_quartiles=(one.decode.lower, one.decode.upper),
        first_token_seconds=one.first_token_seconds,
        batch_size=1,
        prompt_tokens=protocol.speed_prompt_tokens,
        decoded_tokens=protocol.speed_decoded_tokens,
        repeats=protocol.speed_repeats,
        filled=told[1] if len(told) > 1 else None,
        taking_turns=tuple(models) if len(models) > 1 else None,
    )


def batch_speed(
    samples: list[Sample], batch_size: int, prompt_tokens: int, decoded_tokens: int
) -> BatchSpeed:
    """Rates of samples of one batch size."""
    return BatchSpeed(
        batch_size=batch_size,
        prefill=Spread.of([batch_size * prompt_tokens / each.prefill for each in samples]),
        decode=Spread.of([batch_size * decoded_tokens / each.decode for each in samples]),
        first_token_seconds=Spread.of([each.prefill for each in samples], higher_is_better=False),
    )


def _remarked(models: Mapping[str, Checkpoint], speeds: dict[str, Speed]) -> dict[str, Speed]:
    """The speeds with what explains a pruned model that is not faster than the first."""
    dense, *others = models
    for name in others:
        shapes = models[dense].shape, models[name].shape
        if said := remarks(*shapes, speeds[dense], speeds[name]):
            speeds[name] = speeds[name].model_copy(update={"remarks": said})
            for line in said:
                note(f"{name}: {line}")
    return speeds


def _check_room(models: Mapping[str, Checkpoint], dtype: torch.dtype) -> None:
    need = sum(each.parameters for each in models.values()) * dtype.itemsize
    if need > (free := available_bytes()):
        raise EnvironmentFailure(
            f"speed: {', '.join(models)} take turns, so {gigabytes(need)} of weights must be in "
            f"memory at once, and {gigabytes(free)} are free; measure without speed"
        )
