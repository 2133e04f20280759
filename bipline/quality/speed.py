"""Speed: prompt processing and greedy decoding, measured on this machine."""

from __future__ import annotations

import time
from statistics import median
from typing import Any

import torch

from bipline.base.progress import track
from bipline.values.record import Speed


def measure_speed(model: Any, prompt_tokens: int, decoded_tokens: int, repeats: int) -> Speed:
    """Tokens per second at batch size 1: best and median of ``repeats`` after one warm-up.

    ``model`` is a transformers causal language model. Decoding runs with the KV cache and does
    not stop at EOS, so every model decodes the same number of tokens. The best comes first:
    whatever else the machine does can only make a repeat slower.
    """
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randint(model.config.vocab_size, (1, prompt_tokens), generator=generator)
    prompt = prompt.to(model.device)
    prefill, decode = [], []
    for repeat in track(range(repeats + 1), "measure speed"):
        start = time.perf_counter()
        cache, token = _prefill(model, prompt)
        middle = time.perf_counter()
        _decode(model, cache, token, decoded_tokens)
        if repeat:
            prefill.append(middle - start)
            decode.append(time.perf_counter() - middle)
    return Speed(
        prefill_tokens_per_second=prompt_tokens / min(prefill),
        prefill_median_tokens_per_second=prompt_tokens / median(prefill),
        decode_tokens_per_second=decoded_tokens / min(decode),
        decode_median_tokens_per_second=decoded_tokens / median(decode),
        batch_size=1,
        prompt_tokens=prompt_tokens,
        decoded_tokens=decoded_tokens,
        repeats=repeats,
    )


@torch.no_grad()
def _prefill(model: Any, prompt: torch.Tensor) -> tuple[Any, torch.Tensor]:
    output = model(prompt, use_cache=True, logits_to_keep=1)
    return output.past_key_values, output.logits[:, -1:].argmax(-1)


@torch.no_grad()
def _decode(model: Any, cache: Any, token: torch.Tensor, count: int) -> None:
    for _ in range(count):
        output = model(token, past_key_values=cache, use_cache=True)
        cache, token = output.past_key_values, output.logits[:, -1:].argmax(-1)
