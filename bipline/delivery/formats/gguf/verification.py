"""A GGUF file counts after llama.cpp itself opened it and gave what the model gives.

llama.cpp runs in a fresh process, with a limit on its time. The model beside it is run by the
block loop in float32. In f32 log-probabilities must agree to rounding; a type that stores less
changes them, by an amount that is told, and must stay far below what a misplaced tensor does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bipline.base.errors import Refused
from bipline.base.extras import require
from bipline.base.progress import note
from bipline.delivery.formats.engines import (
    around_special_tokens,
    ask,
    measured,
    told_figures,
    windows_of,
)
from bipline.delivery.formats.gguf import engine
from bipline.delivery.formats.gguf.choice import architecture_of
from bipline.delivery.formats.gguf.facts import context_length
from bipline.delivery.formats.gguf.tensors import converted, stored_type
from bipline.delivery.formats.interface import Verification
from bipline.delivery.verification import PAGE, PAGE_TOKENS, first_difference
from bipline.model.block_loop import BlockLoop
from bipline.model.checkpoint import Checkpoint
from bipline.model.token_ids import token_ids
from bipline.model.tokenizer import tokenizer_of
from bipline.settings.gguf import GgufSettings
from bipline.values.export import EngineCheck

# Largest difference of a log-probability in f32, in nats.
TOLERANCE = 1e-4
# What llama.cpp reads off a table in f16, so that f32 is held to the divergence alone.
FROM_TABLES = ("gelu_pytorch_tanh", "gelu_new", "gelu")
# Mean divergence in nats from the model with the weights that the file has: what is left is how
# llama.cpp rounds activations (measured: docs/export.md). A misplaced tensor gives far more.
DIVERGENCE = 5e-3
# Below this a probability in float32 says nothing.
LEAST_LOG_PROBABILITY = -80.0
CONTINUED_TOKENS = 16
CONTEXTS = 8
# A router, which the file has in f32, as it has biases.
ROUTERS = ("mlp.gate.weight", "mlp.router.weight")
# A few of a matrix's values are rounded at once.
ROUNDED_VALUES = 1 << 22


@dataclass(frozen=True)
class Question:
    """What is asked of the engine, and what the model says to it."""

    texts: list[str]
    token_ids: list[list[int]]
    window: list[int]
    windows: dict[str, torch.Tensor]

    @property
    def contexts(self) -> list[list[int]]:
        """Beginnings of the page, each longer than the one before."""
        ends = {max(1, len(self.window) * part // CONTEXTS) for part in range(1, CONTEXTS + 1)}
        return [self.window[:end] for end in sorted(ends)]


def verify(
    file: Path, checkpoint: Checkpoint, texts: Mapping[str, Path], settings: GgufSettings
) -> Verification:
    """Compare the file as llama.cpp runs it with the model it was made from.

    Raises Refused where they differ or the engine ends early, EnvironmentFailure where it takes
    longer than ``settings.seconds``.
    """
    question = _question(checkpoint, texts, settings)
    request = _request(question, checkpoint, settings)
    said = ask(Path(str(engine.__file__)), file, request, settings, "gguf: llama.cpp")
    _compare_page(said["tokens"][0], question.token_ids[0])
    loop = BlockLoop(checkpoint)
    check = _compared(said, question, loop, settings.type)
    figures = measured(said["losses"], question.windows, texts, loop)
    if not check.special_tokens_same:
        note("gguf: llama.cpp reads text around special tokens otherwise than transformers")
    note(
        f"gguf: opened by {check.engine}; token ids agree, log-probabilities differ by at most "
        f"{check.largest_difference:.1e}{told_figures(figures)}"
    )
    return Verification(check, figures)


def _question(
    checkpoint: Checkpoint, texts: Mapping[str, Path], settings: GgufSettings
) -> Question:
    tokenizer = tokenizer_of(checkpoint.folder)
    asked = [page_of(tokenizer), around_special_tokens(tokenizer)]
    ids = list(token_ids(tokenizer, asked, special_tokens=True))
    architecture, _ = architecture_of(checkpoint)
    longest = min(PAGE_TOKENS, context_length(checkpoint, architecture) - CONTINUED_TOKENS)
    return Question(
        texts=asked,
        token_ids=ids,
        window=ids[0][: max(2, longest)],
        windows=windows_of(tokenizer, texts, settings),
    )


def page_of(tokenizer: Any) -> str:
    """The page of text; for a tokenizer of characters without those that it does not know."""
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    if parts["model"]["type"] != "WordLevel":
        return PAGE
    known = tokenizer.get_vocab()
    return "".join(character for character in PAGE if character in known)


def _request(question: Question, checkpoint: Checkpoint, settings: GgufSettings) -> dict[str, Any]:
    scored = [ids for each in question.windows.values() for ids in each.tolist()]
    longest = max(len(question.window), *map(len, scored), 0) + CONTINUED_TOKENS
    return {
        "threads": torch.get_num_threads(),
        "context": longest,
        "size": checkpoint.shape.vocab_size,
        "texts": question.texts,
        "contexts": question.contexts,
        "windows": scored,
        "continue": [question.contexts[0], CONTINUED_TOKENS],
    }


def _compare_page(actual: list[int], expected: list[int]) -> None:
    if (place := first_difference(actual, expected)) is not None:
        raise Refused(
            "gguf: llama.cpp's tokenizer gives other ids than transformers', from token "
            f"{place} of a test page; use the model directory itself, with transformers"
        )


def _compared(said: dict[str, Any], question: Question, loop: BlockLoop, type_: str) -> EngineCheck:
    """The engine's log-probabilities beside the model's. Raises Refused where they are too far."""
    window = torch.tensor([question.window])
    model = loop.logits(window)[0].double().log_softmax(-1)
    largest, compared, divergence = _distance(said, question, model)
    stored = divergence
    if type_ != "f32":
        rounded = stored_logits(loop, window, type_).double().log_softmax(-1)
        _, _, stored = _distance(said, question, rounded)
    check = EngineCheck(
        engine=said["engine"],
        page_tokens=len(question.token_ids[0]),
        special_tokens_same=said["tokens"][1] == question.token_ids[1],
        contexts=len(question.contexts),
        compared=compared,
        largest_difference=largest,
        divergence=divergence,
        divergence_as_stored=stored,
        continuation=tuple(said["continuation"]),
    )
    _refuse_far(check, type_ == "f32" and loop.checkpoint.hidden_act not in FROM_TABLES)
    return check


def _distance(
    said: dict[str, Any], question: Question, expected: torch.Tensor
) -> tuple[float, int, float]:
    """Largest difference from ``[tokens, vocab_size]``, in how many places, and mean divergence."""
    differences, divergences = [], []
    for context, told in zip(question.contexts, said["distributions"], strict=True):
        wanted = expected[len(context) - 1]
        actual = torch.full_like(wanted, float("nan"))
        actual[[int(each) for each in told]] = torch.tensor(list(told.values())).double()
        # llama.cpp's server sums the vocabulary in f32, which shifts all of them alike.
        actual -= actual.logsumexp(0)
        seen = wanted > LEAST_LOG_PROBABILITY
        differences.append((actual - wanted)[seen])
        divergences.append((wanted.exp() * (wanted - actual))[seen].sum())
    every = torch.cat(differences).abs()
    mean = float(torch.stack(divergences).mean())
    # Rounding makes a divergence of nothing negative; a NaN stays one.
    return float(every.max()), len(every), 0.0 if mean < 0 else mean


@torch.no_grad()
def stored_logits(loop: BlockLoop, window: torch.Tensor, type_: str) -> torch.Tensor:
    """Logits of the model with its matrices as the file has them, ``[tokens, vocab_size]``."""
    hidden = _rounded(loop.embed(window), type_)
    for block in loop.blocks():
        stored = {name: held for name, held in block.weights.items() if not _exact(name)}
        block.replace({name: _rounded(tensor, type_) for name, tensor in stored.items()})
        hidden = block.run(hidden)
    return loop.token_logits(hidden[0], _rounded(loop.output_weight(), type_))


def _exact(name: str) -> bool:
    return name in ROUTERS or name.endswith("bias")


def _rounded(tensor: torch.Tensor, type_: str) -> torch.Tensor:
    """Values as they are read back from the file, a piece at a time: rows round by themselves."""
    rows = tensor.reshape(-1, tensor.shape[-1])
    kind = stored_type(tuple(tensor.shape), type_)
    read = require("gguf.quants", "gguf").dequantize
    parts = rows.split(max(1, ROUNDED_VALUES // rows.shape[1]))
    back = [torch.from_numpy(read(converted(part, kind, "a matrix"), kind)) for part in parts]
    return torch.cat(back).reshape(tensor.shape)


def _refuse_far(check: EngineCheck, exact: bool) -> None:
    # Written so that a NaN refuses too.
    if exact and not check.largest_difference <= TOLERANCE:
        raise Refused(
            f"gguf: llama.cpp's log-probabilities differ from the model's by "
            f"{check.largest_difference:.1e} (at most {TOLERANCE:.0e})"
        )
    if not check.divergence_as_stored <= DIVERGENCE:
        raise Refused(
            f"gguf: llama.cpp computes otherwise with the weights that the file has: divergence "
            f"{check.divergence_as_stored:.1e} nats (at most {DIVERGENCE:g})"
        )
