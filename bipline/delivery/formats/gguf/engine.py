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
        self.size = request["size"]
        self.name = f"llama.cpp by xllamacpp {library.__version__}"
        self.harmless = self.tokens("a", add_special=False)[-1]

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        address, data = self.server.listening_address + path, json.dumps(body).encode()
        request = urllib.request.Request(  # noqa: S310
            address, data, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request) as reply:  # noqa: S310
            said: dict[str, Any] = json.load(reply)
        return said

    def tokens(self, text: str, add_special: bool = True) -> list[int]:
        """The token ids of a text."""
        asked = {"content": text, "add_special": add_special, "parse_special": True}
        return list(self._post("/tokenize", asked)["tokens"])

    def _next(self, ids: list[int], token: int, probabilities: int) -> dict[str, Any] | None:
        """What is told of the token after ``ids`` when it is this one.

        None where the token ends within a character: the engine tells nothing of it.
        """
        asked = {"prompt": ids, "n_predict": 1, "n_probs": probabilities, "samplers": []}
        bias = {"logit_bias": [[token, FORCED]], "cache_prompt": True}
        (told,) = self._post("/completion", asked | bias).get("completion_probabilities") or [None]
        if told is not None and told["id"] != token:
            raise RuntimeError(f"token {token} could not be scored")
        return told

    def distribution(self, ids: list[int]) -> dict[int, float]:
        """Log-probabilities of the next token, by id."""
        told = self._next(ids, self.harmless, self.size)
        if told is None:
            raise RuntimeError(f"nothing is told of token {self.harmless}")
        return {each["id"]: each["logprob"] for each in told["top_logprobs"]}

    def loss(self, ids: list[int], token: int) -> float:
        """The negative log-likelihood in nats of the token after ``ids``."""
        told = self._next(ids, token, 1)
        return -(self.distribution(ids)[token] if told is None else told["logprob"])

    def losses(self, ids: list[int]) -> list[float]:
        """The negative log-likelihood in nats of every token but the first."""
        return [self.loss(ids[:place], ids[place]) for place in range(1, len(ids))]

    def continuation(self, ids: list[int], count: int) -> list[int]:
        """The next tokens, each the most likely one."""
        asked = {"prompt": ids, "n_predict": count, "return_tokens": True, "temperature": 0.0}
        return list(self._post("/completion", asked)["tokens"])


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """What the engine says to a request."""
    engine = Engine(request)
    return {
        "engine": engine.name,
        "tokens": [engine.tokens(text) for text in request["texts"]],
        "distributions": [engine.distribution(ids) for ids in request["contexts"]],
        "losses": [engine.losses(ids) for ids in request["windows"]],
        "continuation": engine.continuation(*request["continue"]),
    }


if __name__ == "__main__":
    try:
        said = answer(json.load(sys.stdin))
    except Exception as failure:
        # The engine's own log goes on after an error, which would be lost among its lines.
        said = {"error": f"{type(failure).__name__}: {failure}"}
    print(json.dumps(said))  # noqa: T201
