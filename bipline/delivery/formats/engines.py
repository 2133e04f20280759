"""What formats with an engine of their own share: the engine's process, texts, and figures.

The engine runs in a fresh process, with a limit on its time: a crash of it is an exit status, not
the end of bipline. Requests and answers are JSON.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from bipline.base.errors import EnvironmentFailure, InvalidInput, Refused
from bipline.model.block_loop import BlockLoop
from bipline.quality.perplexity import perplexity, text_windows
from bipline.settings.engine import EngineSettings
from bipline.storage.digests import digest_file
from bipline.storage.documents import read_documents
from bipline.values.export import TextCheck
from bipline.values.record import Perplexity

# llama.cpp would start a debugger on itself where it aborts.
QUIET = {"GGML_NO_BACKTRACE": "1"}
# Special tokens that are looked at, each between two words.
SPECIAL_TOKENS = 32


def ask(
    script: Path, file: Path, request: Mapping[str, Any], settings: EngineSettings, what: str
) -> dict[str, Any]:
    """What an engine answers about a file; ``what`` is how messages call it.

    Raises Refused where it ends early, EnvironmentFailure where it takes longer than
    ``settings.seconds``.
    """
    command = [sys.executable, "-P", str(script)]
    asked = json.dumps({"file": str(file.absolute()), **request})
    try:
        done = subprocess.run(  # noqa: S603
            command, input=asked, capture_output=True, text=True, timeout=settings.seconds,
            check=False, errors="replace", env={**os.environ, **QUIET},
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise EnvironmentFailure(
            f"{what} was not done after {settings.seconds} s; give --seconds more, or fewer "
            "--windows"
        ) from None
    answer = _answer(done.stdout)
    if done.returncode != 0 or "engine" not in answer:
        raise Refused(f"{what} does not run the file: {_reason(done, answer)}")
    return answer


def _answer(output: str) -> dict[str, Any]:
    """The last line of what the engine's process printed; empty where that is no answer."""
    try:
        value = json.loads((output.strip().splitlines() or ["{}"])[-1])
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _reason(done: subprocess.CompletedProcess[str], answer: Mapping[str, Any]) -> str:
    """Why a process failed: the first error of the engine's log, else what was raised."""
    errors = [line.partition(" E ")[2] for line in done.stderr.splitlines() if " E " in line]
    if done.returncode < 0:
        errors.insert(0, f"ended by {signal.Signals(-done.returncode).name}")
    return (errors or [str(answer.get("error", "it ended without an answer"))])[0][:300]


def check_texts(
    tokenizer: Any, texts: Mapping[str, Path], settings: EngineSettings, context: int
) -> None:
    """Raise InvalidInput where a text cannot be measured in windows within so many positions."""
    if texts and settings.seqlen > context:
        raise InvalidInput(
            f"--seqlen {settings.seqlen} is longer than the context of {context} tokens"
        )
    windows_of(tokenizer, texts, settings)


def windows_of(
    tokenizer: Any, texts: Mapping[str, Path], settings: EngineSettings
) -> dict[str, torch.Tensor]:
    """The first windows of each text, ``[windows, seqlen]``. Raises InvalidInput for none."""
    return {
        name: text_windows(tokenizer, read_documents(path), settings.seqlen, "none")[
            : settings.windows
        ]
        for name, path in texts.items()
    }


def around_special_tokens(tokenizer: Any) -> str:
    """A text of some of the tokenizer's special tokens, each between two words."""
    special = list(tokenizer.get_added_vocab())[:SPECIAL_TOKENS]
    return "".join(f"word{token}word" for token in special)


def measured(
    losses: list[list[float]],
    windows: Mapping[str, torch.Tensor],
    texts: Mapping[str, Path],
    loop: BlockLoop,
) -> dict[str, TextCheck]:
    """Perplexity by text: of the engine, from its losses by window, and of the model."""
    found, place = {}, 0
    for name, held in windows.items():
        told = torch.tensor(losses[place : place + len(held)]).double()
        place += len(held)
        nll = float(told.mean())
        found[name] = TextCheck(
            sha256=digest_file(texts[name]),
            seqlen=held.shape[1],
            windows=len(held),
            engine=Perplexity(value=math.exp(nll), nll=nll, tokens=told.numel()),
            model=perplexity(loop, held, name),
        )
    return found


def told_figures(figures: Mapping[str, TextCheck]) -> str:
    """Perplexities of the engine, in brackets the model's own, for a line; empty for none."""
    pairs = (f"{n} {m.engine.value:.2f} ({m.model.value:.2f})" for n, m in figures.items())
    told = ", ".join(pairs)
    return f"; perplexity (model's own) {told}" if told else ""
