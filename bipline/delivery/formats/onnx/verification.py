"""An ONNX model counts after ONNX Runtime itself opened it and gave what transformers gives.

ONNX Runtime runs in a fresh process, with a limit on its time. Logits are compared alone and in a
padded batch, and greedy tokens with and without the KV cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from bipline.base.errors import InvalidInput, Refused
from bipline.base.progress import note
from bipline.delivery.formats.engines import (
    around_special_tokens,
    ask,
    measured,
    told_figures,
    windows_of,
)
from bipline.delivery.formats.interface import Subject, Verification
from bipline.delivery.formats.onnx import engine
from bipline.delivery.verification import PAGE, decoded, first_difference
from bipline.model.block_loop import BlockLoop
from bipline.model.built import longest_window
from bipline.model.loading import load_model
from bipline.model.token_ids import token_ids
from bipline.model.tokenizer import load_tokenizer, tokenizer_of
from bipline.settings.onnx import OnnxSettings
from bipline.values.export import EngineCheck

# Largest difference of a log-probability, in nats.
TOLERANCE = 1e-4
# Below this a probability in float32 says nothing.
LEAST_LOG_PROBABILITY = -80.0
WINDOW_TOKENS = 128
PROMPT_TOKENS, CONTINUED_TOKENS = 16, 32


@dataclass(frozen=True)
class Expected:
    """What transformers says: of a window, and of a prompt and what greedily follows.

    Log-probabilities are ``[tokens, vocab]``, ``steps`` those that each next token was taken by.
    """

    window: list[int]
    prompt: list[int]
    log_probabilities: torch.Tensor
    continuation: list[int]
    steps: torch.Tensor

    @property
    def batches(self) -> list[list[list[int]]]:
        """The window alone, and beside a shorter beginning of it, which is padded."""
        return [[self.window], [self.window[: max(1, len(self.window) // 2)], self.window]]

    def rows(self) -> torch.Tensor:
        """The log-probabilities of all rows of all batches, row after row."""
        lengths = (len(row) for batch in self.batches for row in batch)
        return torch.cat([self.log_probabilities[:length] for length in lengths])


def verify(file: Path, subject: Subject, settings: OnnxSettings) -> Verification:
    """Compare the file as ONNX Runtime runs it with the model it was made from.

    Raises Refused where they differ or the engine ends early, EnvironmentFailure where it takes
    longer than ``settings.seconds``.
    """
    checkpoint = subject.checkpoint
    tokenizer = tokenizer_of(checkpoint.folder)
    ids, special = _compared_ids(file.parent, tokenizer)
    expected = _expected(load_model(checkpoint, torch.float32), ids)
    windows = windows_of(tokenizer, subject.texts, settings)
    with TemporaryDirectory(prefix="bipline-") as place:
        logits = Path(place) / "logits.npy"
        request = {
            "threads": torch.get_num_threads(),
            "batches": expected.batches,
            "logits": str(logits),
            "windows": [each for held in windows.values() for each in held.tolist()],
            "continue": [expected.prompt, len(expected.continuation)],
        }
        script = Path(str(engine.__file__))
        said = ask(script, file, request, settings, "onnx: ONNX Runtime")
        actual = torch.from_numpy(np.load(logits, allow_pickle=False))
    check = _compared(said, actual, expected, len(ids), special)
    figures = measured(said["losses"], windows, subject.texts, BlockLoop(checkpoint))
    note(
        f"onnx: opened by {check.engine}; token ids and {len(check.continuation)} greedy tokens "
        f"with and without cache agree, log-probabilities differ by at most "
        f"{check.largest_difference:.1e}{told_figures(figures)}"
    )
    return Verification(check, figures)


def _compared_ids(folder: Path, tokenizer: Any) -> tuple[list[int], bool]:
    """Ids of the page, the same by the files beside the graph; whether special tokens agree too."""
    try:
        written = load_tokenizer(folder)
    except InvalidInput as error:
        raise Refused(f"onnx: {error}") from error
    asked = [PAGE, around_special_tokens(tokenizer)]
    expected, actual = (
        list(token_ids(t, asked, special_tokens=True)) for t in (tokenizer, written)
    )
    if (place := first_difference(actual[0], expected[0])) is not None:
        raise Refused(
            "onnx: the tokenizer beside the graph gives other ids than the model's, from token "
            f"{place} of a test page"
        )
    return expected[0], expected[1] == actual[1]


@torch.no_grad()
def _expected(model: Any, ids: list[int]) -> Expected:
    longest = longest_window(model.config)
    prompt = ids[: max(1, min(PROMPT_TOKENS, longest - CONTINUED_TOKENS))]
    count = min(CONTINUED_TOKENS, longest - len(prompt))
    window = ids[: min(WINDOW_TOKENS, longest)]
    whole = decoded(model, torch.tensor([prompt]), True, count)
    told, steps = (
        model(torch.tensor([each])).logits[0].double().log_softmax(-1) for each in (window, whole)
    )
    return Expected(window, prompt, told, whole[len(prompt) :], steps[len(prompt) - 1 : -1])


def _compared(
    said: dict[str, Any], logits: torch.Tensor, expected: Expected, page: int, special: bool
) -> EngineCheck:
    """The engine beside transformers. Raises Refused where they are too far from each other."""
    wanted = expected.rows()
    if logits.shape != wanted.shape:
        raise Refused(f"onnx: gives logits {tuple(logits.shape)}, not {tuple(wanted.shape)}")
    actual = logits.double().log_softmax(-1)
    seen = wanted > LEAST_LOG_PROBABILITY
    largest = float((actual - wanted)[seen].abs().max())
    # Rounding makes a divergence of nothing negative; a NaN stays one.
    mean = float((wanted.exp() * (wanted - actual)).sum(-1).mean())
    divergence = 0.0 if mean < 0 else mean
    # Written so that a NaN refuses too.
    if not largest <= TOLERANCE:
        raise Refused(
            f"onnx: ONNX Runtime's log-probabilities differ from transformers' by {largest:.1e} "
            f"(at most {TOLERANCE:.0e})"
        )
    for kind in ("cached", "plain"):
        _compare_greedy(said[kind], expected, kind)
    return EngineCheck(
        engine=said["engine"],
        page_tokens=page,
        special_tokens_same=special,
        contexts=len(wanted),
        compared=int(seen.sum()),
        largest_difference=largest,
        divergence=divergence,
        divergence_as_stored=divergence,
        continuation=tuple(said["cached"]),
    )


def _compare_greedy(actual: list[int], expected: Expected, kind: str) -> None:
    """Raise Refused at the first other token, unless the two were equally likely."""
    how = {"cached": "with the KV cache", "plain": "without a cache"}[kind]
    if (place := first_difference(actual, expected.continuation)) is None:
        return
    if len(actual) == len(expected.continuation):
        likely = expected.steps[place]
        gap = likely[expected.continuation[place]] - likely[actual[place]]
        if gap <= 2 * TOLERANCE:
            return  # from here on either continuation is right
    raise Refused(f"onnx: greedy decoding {how} gives other tokens from {place} on")
