"""13-grams of words: how one finds that a text is measured on which something was fitted on.

Shared 13-grams are the check of Brown et al. 2020 (arXiv 2005.14165, appendix C). They are told
apart by 64 bits that are the same on every machine.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bipline.base.errors import InvalidInput
from bipline.storage.documents import read_documents

NGRAM_WORDS = 13
# A quotation or a licence text may be shared by accident; one window in a hundred may not.
MAXIMUM_OVERLAP = 0.01
# An odd number: words in another order give another hash.
FACTOR = np.uint64(0x9E3779B97F4A7C15)
Grams = NDArray[np.uint64]


def ngrams_of(documents: Iterable[str]) -> Grams:
    """The distinct 13-grams of words of some documents, each as its hash, ascending."""
    number = lru_cache(1 << 20)(_number)
    parts = []
    for document in documents:
        words = np.array([number(word) for word in document.lower().split()], dtype=np.uint64)
        count = max(0, len(words) - NGRAM_WORDS + 1)
        grams = np.zeros(count, dtype=np.uint64)
        for start in range(NGRAM_WORDS):
            grams = grams * FACTOR + words[start : start + count]
        parts.append(np.unique(_mixed(grams)))
    return np.unique(np.concatenate(parts)) if parts else np.zeros(0, dtype=np.uint64)


def overlap_of(own: Grams, known: Grams) -> float:
    """The share of a text's n-grams that are known; 0 for a text that has none."""
    return len(np.intersect1d(own, known, assume_unique=True)) / len(own) if len(own) else 0.0


def check_overlap(
    texts: Iterable[Path], evaluation: Iterable[Path], work: str = "calibrate"
) -> dict[Path, float]:
    """The largest share of 13-grams that each text has in common with an evaluation text.

    Of the text's own, or of the evaluation text's, which a longer text may hold whole.
    Raises InvalidInput for one above MAXIMUM_OVERLAP; ``work`` is what it was to be used for.
    """
    measured = {path: ngrams_of(read_documents(path)) for path in evaluation}
    found = {}
    for path in texts:
        own, found[path] = ngrams_of(read_documents(path) if measured else ()), 0.0
        for other, grams in measured.items():
            shares = overlap_of(own, grams), overlap_of(grams, own)
            found[path] = max(found[path], *shares)
            if max(shares) > MAXIMUM_OVERLAP:
                said = f"{shares[0]:.1%} of its 13-grams stand in the evaluation text {other}, "
                said += f"{shares[1]:.1%} of that text's in it"
                raise InvalidInput(f"{path}: {said}; {work} on other text")
    return found


def _number(word: str) -> int:
    return int.from_bytes(blake2b(word.encode("utf-8", "replace"), digest_size=8).digest(), "big")


def _mixed(grams: Grams) -> Grams:
    """Every bit depends on all (the finalizer of Steele et al. 2014, SplitMix64)."""
    grams = (grams ^ (grams >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    grams = (grams ^ (grams >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return grams ^ (grams >> np.uint64(31))
