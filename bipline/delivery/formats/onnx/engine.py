"""ONNX Runtime in a process of its own: ``python engine.py`` reads a request, writes an answer.

The request and the answer are JSON; nothing of bipline and no torch is imported.

Request: ``file``, ``threads``, ``batches`` (each of lists of ids, the shorter ones padded on the
left), ``logits`` (the .npy file that their logits go to, row after row without the padding),
``windows`` (lists of ids whose every token but the first is scored), ``continue`` (ids, and how
many to add greedily).
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np

CACHE = "past_key_values."


class Engine:
    """A loaded model."""

    def __init__(self, request: dict[str, Any]) -> None:
        import onnxruntime as library

        options = library.SessionOptions()
        options.intra_op_num_threads = request["threads"]
        options.log_severity_level = 3
        providers = ["CPUExecutionProvider"]
        self.session = library.InferenceSession(request["file"], options, providers=providers)
        self.caches = [each for each in self.session.get_inputs() if each.name.startswith(CACHE)]
        self.name = f"ONNX Runtime {library.__version__}"

    def empty(self, rows: int) -> list[Any]:
        """A KV cache of no tokens."""
        shapes = ((rows, each.shape[1], 0, each.shape[3]) for each in self.caches)
        return [np.zeros(shape, np.float32) for shape in shapes]

    def run(self, ids: Any, mask: Any, past: list[Any]) -> tuple[Any, list[Any]]:
        """Logits ``[rows, tokens, vocab]`` of ids ``[rows, tokens]`` after a cache, and the next.

        ``mask`` is ``[rows, past tokens + tokens]``, 0 for padding.
        """
        positions = np.maximum(mask.cumsum(1) - 1, 0)[:, mask.shape[1] - ids.shape[1] :]
        feed = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
        feed |= {each.name: held for each, held in zip(self.caches, past, strict=True)}
        logits, *present = self.session.run(None, feed)
        return logits, present

    def logits(self, rows: list[list[int]]) -> list[Any]:
        """Logits ``[tokens, vocab]`` of each of several rows, run as one batch."""
        longest = max(map(len, rows))
        ids, mask = np.zeros((2, len(rows), longest), np.int64)
        for place, row in enumerate(rows):
            ids[place, longest - len(row) :], mask[place, longest - len(row) :] = row, 1
        found, _ = self.run(ids, mask, self.empty(len(rows)))
        return [each[longest - len(row) :] for each, row in zip(found, rows, strict=True)]

    def losses(self, ids: list[int]) -> list[float]:
        """The negative log-likelihood in nats of every token but the first."""
        logits = self.logits([ids])[0][:-1].astype(np.float64)
        logits -= logits.max(-1, keepdims=True)
        chosen = logits[np.arange(len(logits)), ids[1:]]
        losses: list[float] = (np.log(np.exp(logits).sum(-1)) - chosen).tolist()
        return losses

    def continuation(self, ids: list[int], count: int, cached: bool) -> list[int]:
        """The next tokens, each the most likely one, with a KV cache or each from the beginning."""
        tokens, given, past = list(ids), list(ids), self.empty(1)
        for _ in range(count):
            mask = np.ones((1, len(tokens)), np.int64)
            logits, present = self.run(np.array([given]), mask, past)
            tokens.append(int(logits[0, -1].argmax()))
            given, past = ([tokens[-1]], present) if cached else (tokens, past)
        return tokens[len(ids) :]


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """What the engine says to a request."""
    engine = Engine(request)
    rows = [row for batch in request["batches"] for row in engine.logits(batch)]
    np.save(request["logits"], np.concatenate(rows))
    prompt, count = request["continue"]
    return {
        "engine": engine.name,
        "losses": [engine.losses(ids) for ids in request["windows"]],
        "cached": engine.continuation(prompt, count, cached=True),
        "plain": engine.continuation(prompt, count, cached=False),
    }


if __name__ == "__main__":
    try:
        said = answer(json.load(sys.stdin))
    except Exception as failure:
        said = {"error": f"{type(failure).__name__}: {failure}"}
    print(json.dumps(said))  # noqa: T201
