"""Calibrate: from documents to the token windows that every score is computed on.

Documents are de-duplicated, shuffled by the seed and tokenised one by one, each opened by the
tokenizer's BOS where it has one, so that a window that crosses a boundary shows it. The stream
is cut into windows, and ``samples`` of them are drawn by the seed without replacement. Nothing
else decides the draw. By which text it was, a model that is fitted on them is known again.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import gt
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from bipline.base.errors import InvalidInput
from bipline.base.progress import note, track
from bipline.model.token_ids import token_ids
from bipline.model.tokenizer import tokenizer_of
from bipline.storage.digests import digest_bytes
from bipline.storage.directory import DirectoryWriter, write_text
from bipline.storage.documents import read_documents
from bipline.storage.folder import Folder
from bipline.storage.strict_json import read_json
from bipline.values.fitted_text import FITTED_NAME, FittedText

KIND = "calibration-set"


@dataclass(frozen=True)
class CalibrationSet:
    """Token ids ``[samples, seqlen]`` (int64), how they came about, and of which text."""

    token_ids: torch.Tensor
    description: dict[str, Any]
    fitted: FittedText = field(default_factory=FittedText)

    @property
    def digest(self) -> str:
        """The digest of the token ids."""
        return digest_bytes(self.token_ids.numpy().tobytes())


def calibrate(
    tokenizer_folder: Folder,
    texts: Sequence[tuple[Path, float]],
    samples: int,
    seqlen: int,
    seed: int,
    max_memory: int | None = None,
    fewest: int | None = None,
) -> CalibrationSet:
    """Draw ``samples`` windows of ``seqlen`` tokens from a mix of texts.

    ``texts`` are files with their weight in the mix (shares of the windows, any positive scale).
    Names decide nothing; windows come in the order of the texts. Where these hold fewer windows,
    as many as there are of the same mix are drawn, down to ``fewest``; without it none fewer.
    Raises InvalidInput for empty or too short text, for one that takes more than ``max_memory``,
    and for weights or sizes that make no sense.
    """
    _check_sizes(texts, samples, seqlen)
    tokenizer = tokenizer_of(tokenizer_folder)
    found, fitted, documents_of = [], [], []
    weights = [weight for _, weight in texts]
    for (path, _), most in zip(texts, window_counts(weights, samples), strict=True):
        documents = _distinct(read_documents(path))
        fitted.append(FittedText.of(documents))
        documents_of.append(len(documents))
        stream = _token_stream(tokenizer, _shuffled(documents, seed), max_memory)
        found.append(_drawn(stream, most, seqlen, seed, path))
    counts = counts_within(weights, samples, fewest, [each.available for each in found])
    parts = [each.first(count, seqlen) for each, count in zip(found, counts, strict=True)]
    if sum(counts) < samples:
        note(f"samples {sum(counts)}: the text holds no {samples} windows")
    told = [
        {"documents": documents, "windows": count}
        for documents, count in zip(documents_of, counts, strict=True)
    ]
    description = {"samples": sum(counts), "seqlen": seqlen, "seed": seed, "texts": told}
    return CalibrationSet(torch.cat(parts), description, FittedText.joined(fitted))


def save_calibration(calibration: CalibrationSet, writer: DirectoryWriter) -> None:
    """Write a calibration set into a directory: token ids as safetensors, the rest as JSON."""
    save_file({"token_ids": calibration.token_ids}, writer.path / "token_ids.safetensors")
    text = json.dumps(calibration.description, indent=1, sort_keys=True)
    write_text(writer.path / "calibration.json", text + "\n")
    write_text(writer.path / FITTED_NAME, calibration.fitted.to_json())
    windows, seqlen = calibration.token_ids.shape
    writer.info = {"samples": windows, "seqlen": seqlen, "token_digest": calibration.digest}


def load_calibration(directory: Path) -> CalibrationSet:
    """Read what :func:`save_calibration` wrote."""
    token_ids = load_file(directory / "token_ids.safetensors")["token_ids"]
    description = read_json(directory / "calibration.json", "description of a calibration set")
    return CalibrationSet(token_ids, description)


def _check_sizes(texts: Sequence[tuple[Path, float]], samples: int, seqlen: int) -> None:
    if samples < 1 or seqlen < 2:
        raise InvalidInput(f"samples {samples}, seqlen {seqlen}: need at least 1 and 2")
    if not texts:
        raise InvalidInput("no calibration text was given")
    for path, weight in texts:
        if not 0 < weight < float("inf"):
            raise InvalidInput(f"{path}: weight {weight} in the calibration mix must be positive")


def window_counts(weights: Sequence[float], samples: int) -> list[int]:
    """Split the windows by positive weights; largest remainders take what rounding leaves."""
    total = sum(weights)
    exact = [samples * weight / total for weight in weights]
    shares = [int(share) for share in exact]
    order = sorted(range(len(exact)), key=lambda i: (shares[i] - exact[i], i))
    for index in order[: samples - sum(shares)]:
        shares[index] += 1
    return shares


def counts_within(
    weights: Sequence[float], samples: int, fewest: int | None, available: Sequence[int]
) -> list[int]:
    """Windows of each text: of ``samples``, or of the most down to ``fewest`` that there are."""
    if fewest is None:
        return window_counts(weights, samples)
    # A share is within one of its exact size, so no more than these can be had.
    shares = zip(available, weights, strict=True)
    held = min(int((count + 1) * sum(weights) / weight) for count, weight in shares)
    count = max(fewest, min(samples, held))
    while count > fewest and any(map(gt, window_counts(weights, count), available)):
        count -= 1
    return window_counts(weights, count)


def _distinct(documents: list[str]) -> list[str]:
    documents = [document for document in documents if document.strip()]
    distinct = list(dict.fromkeys(documents))
    if len(distinct) < len(documents):
        note(f"{len(documents) - len(distinct)} duplicate documents were left out")
    return distinct


def _shuffled(documents: list[str], seed: int) -> list[str]:
    order = documents.copy()
    random.Random(seed).shuffle(order)
    return order


def _token_stream(tokenizer: Any, documents: list[str], max_memory: int | None) -> torch.Tensor:
    found = token_ids(tokenizer, documents, special_tokens=True, max_memory=max_memory)
    ids = track(found, "tokenise", len(documents))
    return torch.cat([torch.tensor(each, dtype=torch.int64) for each in ids])


@dataclass(frozen=True)
class _Drawn:
    """Windows of one text in the order of their draw, their places in it, and how many it holds."""

    path: Path
    available: int
    places: torch.Tensor
    windows: torch.Tensor

    def first(self, count: int, seqlen: int) -> torch.Tensor:
        """The first so many that were drawn, in the order of the text."""
        if self.available < count:
            raise InvalidInput(
                f"{self.path}: holds {self.available} windows of {seqlen} tokens, {count} were "
                "asked for; give more text, or lower samples or seqlen"
            )
        return self.windows[:count][self.places[:count].sort().indices]


def _drawn(stream: torch.Tensor, most: int, seqlen: int, seed: int, path: Path) -> _Drawn:
    available = len(stream) // seqlen
    if available < 1:
        raise InvalidInput(
            f"{path}: {len(stream)} tokens, shorter than one window of seqlen {seqlen}"
        )
    windows = stream[: available * seqlen].view(available, seqlen)
    places = torch.randperm(available, generator=torch.Generator().manual_seed(seed))
    # A text's share of fewer windows may be one more: what rounding leaves goes round.
    places = places[: most + 1]
    return _Drawn(path, available, places, windows[places])
