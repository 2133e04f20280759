"""Speed of a model that an engine serves, by its OpenAI endpoint: what a client of it sees.

Prompts are token ids and each repeat draws its own, so that nothing is found in a prompt cache.
The first token's arrival ends prefill: it holds one step of sampling and the way through HTTP.
"""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import torch

from bipline.base.errors import EnvironmentFailure, InvalidInput
from bipline.quality.speed import Sample, prompts_of

# Ids that every vocabulary has and that are no special tokens in the usual ones.
LEAST_ID, IDS = 10, 200
SECONDS = 600.0


@dataclass
class Endpoint:
    """A served model: the address up to ``/v1``, and the name it is asked for by."""

    url: str
    model: str
    seeds: Iterator[int] = field(default_factory=count)

    @classmethod
    def open(cls, url: str) -> Endpoint:
        """The first model that an endpoint lists.

        Raises InvalidInput for no http address, EnvironmentFailure where nothing answers.
        """
        base = url.rstrip("/").removesuffix("/v1") + "/v1"
        if not base.startswith(("http://", "https://")):
            raise InvalidInput(f"--endpoint {url!r}: write http://HOST:PORT or https://...")
        with _opened(urllib.request.Request(f"{base}/models"), url) as reply:  # noqa: S310
            listed = _object(reply.read(), url).get("data")
        if not listed:
            raise EnvironmentFailure(f"{url}: serves no model")
        return cls(base, str(listed[0]["id"]))

    def sample(self, prompts: torch.Tensor, decoded_tokens: int) -> Sample:
        """All prompts at once, a connection each; ``prompts`` tells their number and length."""
        batch, tokens = prompts.shape
        drawn = LEAST_ID + prompts_of(batch, tokens, IDS, next(self.seeds))
        gate = threading.Barrier(batch)
        with ThreadPoolExecutor(batch) as pool:
            asked = [pool.submit(self._one, ids, decoded_tokens, gate) for ids in drawn.tolist()]
            told = [each.result() for each in asked]
        start = min(begun for begun, _, _ in told)
        first = max(arrived for _, arrived, _ in told)
        end = max(ended for _, _, ended in told)
        if end <= first:
            raise EnvironmentFailure(f"{self.url}: all tokens come at once: it does not stream")
        return Sample(first - start, (end - first) * decoded_tokens / max(1, decoded_tokens - 1))

    def _one(
        self, ids: list[int], tokens: int, gate: threading.Barrier
    ) -> tuple[float, float, float]:
        """When a request went out, its first token came and its last one.

        Raises EnvironmentFailure where fewer tokens come than were asked for.
        """
        asked = {
            "model": self.model, "prompt": ids, "max_tokens": tokens, "min_tokens": tokens,
            "temperature": 0.0, "ignore_eos": True, "cache_prompt": False, "stream": True,
            "stream_options": {"include_usage": True},
        }  # fmt: skip
        request = urllib.request.Request(  # noqa: S310
            f"{self.url}/completions", json.dumps(asked).encode(),
            {"Content-Type": "application/json"},
        )  # fmt: skip
        gate.wait(SECONDS)
        start, times, usage = time.perf_counter(), [], None
        with _opened(request, self.url) as reply:
            for chunk in _chunks(reply, self.url):
                if chunk.get("choices"):
                    times.append(time.perf_counter())
                usage = chunk.get("usage") or usage
        made = usage["completion_tokens"] if usage else len(times)
        if not times or made != tokens:
            raise EnvironmentFailure(
                f"{self.url}: {tokens} tokens were asked for and {made} came; speeds would differ "
                "in what was decoded"
            )
        return start, times[0], times[-1]


def _chunks(reply: Any, url: str) -> Iterator[dict[str, Any]]:
    """The objects of a stream of server-sent events."""
    for line in reply:
        text = line.strip()
        if text.startswith(b"data:") and (data := text[5:].strip()) != b"[DONE]":
            yield _object(data, url)


def _object(data: bytes, url: str) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise EnvironmentFailure(f"{url}: answers {data[:60]!r}, which is not OpenAI's protocol")
    if "error" in value:
        raise EnvironmentFailure(f"{url}: {json.dumps(value['error'])[:200]}")
    return value


def _opened(request: urllib.request.Request, url: str) -> Any:
    try:
        return urllib.request.urlopen(request, timeout=SECONDS)  # noqa: S310
    except urllib.error.HTTPError as error:
        said = error.read(200).decode("utf-8", "replace")
        raise EnvironmentFailure(f"{url}: HTTP {error.code}: {said}") from None
    except OSError as error:
        raise EnvironmentFailure(f"{url}: no answer: {error}") from None
