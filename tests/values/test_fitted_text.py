"""FittedText: what was fitted on is known again, whole or in part, and nothing else is."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bipline.base.errors import InvalidInput
from bipline.storage.ngrams import MAXIMUM_OVERLAP, check_overlap, ngrams_of, overlap_of
from bipline.values.fitted_text import (
    FITTED_NAME,
    MOST_HASHES,
    FittedText,
    beside_plan,
    parse_fitted,
    read_fitted,
    write_fitted,
)
from tests.compression.test_calibrate import prose

LONG = prose(1, 40_000)
WORDS = st.lists(st.sampled_from("abcdefghijklmnop"), max_size=60).map(" ".join)


def exact(own: str, other: str) -> float:
    """The definition: the larger of both shares, by sets of tuples of words."""

    def grams(text: str) -> set[tuple[str, ...]]:
        words = text.lower().split()
        return {tuple(words[i : i + 13]) for i in range(len(words) - 12)}

    one, two = grams(own), grams(other)
    return max((len(one & two) / len(each) for each in (one, two) if each), default=0.0)


@settings(max_examples=80, deadline=None)
@given(WORDS, WORDS, WORDS)
def test_shares_are_those_of_the_definition(before: str, shared: str, behind: str) -> None:
    own, other = f"{before} {shared}", f"{shared} {behind}"
    one, two = ngrams_of([own]), ngrams_of([other])
    assert max(overlap_of(one, two), overlap_of(two, one)) == pytest.approx(exact(own, other))
    known = FittedText.of([own])
    if len(np.intersect1d(one, two)) > 1:
        assert known.overlap([other]) == pytest.approx(exact(own, other))


def test_hashes_are_the_same_on_every_machine() -> None:
    words = "one two three four five six seven eight nine ten eleven twelve thirteen"
    assert ngrams_of([words]).tolist() == [18015363636652299130]
    assert ngrams_of([words.upper(), words]).tolist() == ngrams_of([words]).tolist()
    backwards = " ".join(reversed(words.split()))
    assert ngrams_of([backwards]).tolist() != ngrams_of([words]).tolist()


@pytest.mark.parametrize("part", [0.02, 0.1, 0.5, 1.0])
def test_a_long_text_is_known_by_its_least_hashes(part: float) -> None:
    known = FittedText.of([LONG])
    assert len(known.grams) == MOST_HASHES
    assert len(known.to_json()) < 100_000
    words = LONG.split()[: int(40_000 * part)]
    mixed = " ".join(words) + " " + prose(2, 40_000 - len(words))
    assert known.overlap([mixed]) == pytest.approx(part, rel=0.3)
    assert known.overlap([" ".join(LONG.split()[-2000:])]) == 1.0
    assert known.overlap([prose(3, 40_000)]) == 0.0


@settings(max_examples=40, deadline=None)
@given(st.lists(WORDS, max_size=4))
def test_parts_together_are_the_whole(texts: list[str]) -> None:
    parts = [FittedText.of([text]) for text in texts]
    assert FittedText.joined(parts) == FittedText.of(texts)
    assert parse_fitted(FittedText.of(texts).to_json().encode(), "x") == FittedText.of(texts)


def test_long_parts_together_keep_the_least() -> None:
    other = prose(2, 40_000)
    assert FittedText.joined([FittedText.of([LONG]), FittedText.of([other])]) == FittedText.of(
        [LONG, other]
    )


BAD = {
    "no JSON": b"{", "a list": b"[]", "empty": b"", "latin-1": b"\xe9",
    "version": b'{"schema_version": 2}', "other words": b'{"ngram_words": 5}',
    "more": b'{"odd": 1}', "no base64": b'{"hashes": "***"}', "odd length": b'{"hashes": "AAAA"}',
    "not ascending": json.dumps({"hashes": base64.b64encode(bytes(16)).decode()}).encode(),
    "too long": json.dumps({"hashes": "A" * 400_000}).encode(),
    "negative": b'{"below": -1}', "beyond": b'{"below": 18446744073709551617}',
    "deep": b'{"hashes": ' + b"[" * 100_000 + b"}",
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_record_is_refused_by_name(case: str, tmp_path: Path) -> None:
    (tmp_path / FITTED_NAME).write_bytes(BAD[case])
    with pytest.raises(InvalidInput) as refusal:
        read_fitted([tmp_path])
    assert str(refusal.value).startswith(str(tmp_path / FITTED_NAME))
    assert "\n" not in str(refusal.value)


def test_it_goes_where_it_is_written(tmp_path: Path) -> None:
    one, two, plan = tmp_path / "one", tmp_path / "two", beside_plan(tmp_path / "plan.json")
    for place in (one, two):
        place.mkdir()
    write_fitted(two, [one, plan])
    assert read_fitted([one, two, plan]) is None
    (one / FITTED_NAME).write_text(FittedText.of([prose(1)]).to_json())
    plan.write_text(FittedText.of([prose(2)]).to_json())
    write_fitted(two, [one, plan])
    assert read_fitted([two]) == FittedText.of([prose(1), prose(2)])


def test_a_short_evaluation_text_in_a_long_one_is_found(tmp_path: Path) -> None:
    """By the long text's own share, below one in a hundred, it would pass."""
    long, short = tmp_path / "long.txt", tmp_path / "short.txt"
    long.write_text(LONG)
    short.write_text(" ".join(LONG.split()[500:650]))
    assert overlap_of(ngrams_of([LONG]), ngrams_of([short.read_text()])) < MAXIMUM_OVERLAP
    with pytest.raises(InvalidInput, match=f"{long}: 0..% .* {short}, 100.0% of that"):
        check_overlap([long], [short])


@pytest.mark.parametrize("text", [b"[]", b"", b"3", b"{", b"\xff", b"[[]]"])
def test_what_is_no_record_is_one_line_in_our_words(text: bytes) -> None:
    with pytest.raises(InvalidInput, match="not a record of fitted text") as caught:
        parse_fitted(text, "model/fitted_text.json")
    assert "pydantic" not in str(caught.value) and "\n" not in str(caught.value)
