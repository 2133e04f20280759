"""llama.cpp in a process of its own: ``python engine.py`` reads a request, writes an answer.

A crash of the engine is then an exit status, not the end of bipline. The request and the answer
are JSON; nothing of bipline is imported. Exact arithmetic is asked for: a key-value cache in f32
and no flash attention.

Request: ``file``, ``threads``, ``context`` (tokens), ``texts`` (to tokenise, with special tokens
read and those around a text added), ``contexts`` (lists of ids whose next token's whole
distribution is wanted), ``windows`` (lists of ids whose every token but the first is scored),
``continue`` (ids, and how many to add).
"""

from __future__ import annotations

import json
import sys
import urllib.request
from typing import Any

# Added to the logit of the token whose probability is wanted: it is then the one that is chosen,
# and what is told of it is its probability before that.
FORCED = 1e6


class Engine:
    """A loaded file."""

    def __init__(self, request: dict[str, Any]) -> None:
        import xllamacpp as library

        parameters = library.CommonParams()
        parameters.model.path = request["file"]
        parameters.n_ctx = parameters.n_batch = request["context"]
        parameters.n_parallel = 1
        parameters.warmup = False
        parameters.cpuparams.n_threads = request["threads"]
        parameters.cpuparams_batch.n_threads = request["threads"]
        parameters.n_gpu_layers = 0
        parameters.cache_type_k = parameters.cache_type_v = library.ggml_type.GGML_TYPE_F32
        parameters.flash_attn_type = library.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self.server = library.Server(parameters)
        self.name = f"llama.cpp by xllamacpp {library.__version__}"

    def tokens(self, text: str) -> list[int]:
        """The token ids of a text."""
        body = json.dumps({"content": text, "add_special": True, "parse_special": True})
        address = f"{self.server.listening_address}/tokenize"
        request = urllib.request.Request(  # noqa: S310
            address, body.encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request) as answer:  # noqa: S310
            return list(json.load(answer)["tokens"])

    def _complete(self, ids: list[int], probabilities: int, **more: Any) -> list[dict[str, Any]]:
        asked = {"prompt": ids, "n_predict": 1, "n_probs": probabilities, "temperature": 0.0}
        answer = self.server.handle_completions({**asked, "samplers": [], **more})
        if "choices" not in answer:
            raise RuntimeError(str(answer.get("error", answer))[:300])
        return list(answer["choices"][0]["logprobs"]["content"])

    def distribution(self, ids: list[int], size: int) -> dict[int, float]:
        """Log-probabilities of the next token, by id."""
        (told,) = self._complete(ids, size, cache_prompt=False)
        return {each["id"]: each["logprob"] for each in told["top_logprobs"]}

    def losses(self, ids: list[int]) -> list[float]:
        """The negative log-likelihood in nats of every token but the first."""
        found = []
        for place in range(1, len(ids)):
            bias = [[ids[place], FORCED]]
            (told,) = self._complete(ids[:place], 1, cache_prompt=True, logit_bias=bias)
            if told["id"] != ids[place]:
                raise RuntimeError(f"token {ids[place]} could not be scored")
            found.append(-told["logprob"])
        return found

    def continuation(self, ids: list[int], count: int) -> list[int]:
        """The next tokens, each the most likely one."""
        told = self._complete(ids, 1, n_predict=count, cache_prompt=False, ignore_eos=True)
        return [each["id"] for each in told]


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """What the engine says to a request."""
    engine = Engine(request)
    return {
        "engine": engine.name,
        "tokens": [engine.tokens(text) for text in request["texts"]],
        "distributions": [engine.distribution(i, request["size"]) for i in request["contexts"]],
        "losses": [engine.losses(ids) for ids in request["windows"]],
        "continuation": engine.continuation(*request["continue"]),
    }


if __name__ == "__main__":
    print(json.dumps(answer(json.load(sys.stdin))))  # noqa: T201
