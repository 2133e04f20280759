"""Calibration: seeded, without duplicates, apart from the evaluation text."""

from __future__ import annotations

import random
from operator import le
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from bipline.base.errors import InvalidInput
from bipline.base.progress import listening
from bipline.compression.calibrate import CalibrationSet, calibrate, counts_within, window_counts
from bipline.storage.documents import SEPARATOR, read_documents, write_rows
from bipline.storage.folder import open_folder
from bipline.storage.ngrams import check_overlap, ngrams_of, overlap_of

WORDS = [
    "alpha",
    "beta",
    "gamma",
    "delta",
    "epsilon",
    "zeta",
    "eta",
    "theta",
    "iota",
    "kappa",
    "lambda",
    "mu",
    "nu",
    "xi",
    "omicron",
]


def prose(seed: int, words: int = 400) -> str:
    draw = random.Random(seed)
    return " ".join(draw.choice(WORDS) for _ in range(words))


def text_file(path: Path, *documents: str) -> Path:
    path.write_text(f"\n{SEPARATOR}\n".join(documents), encoding="utf-8")
    return path


def drawn(
    model: Path, texts: list[tuple[Path, float]], samples: int, seqlen: int, seed: int
) -> CalibrationSet:
    return calibrate(open_folder(model), texts, samples, seqlen, seed)


def test_same_seed_same_windows_other_seed_others(llama: Path, tmp_path: Path) -> None:
    text = text_file(tmp_path / "a.txt", prose(1), prose(2), prose(3))
    first = drawn(llama, [(text, 1.0)], 8, 32, seed=0)
    assert first.token_ids.shape == (8, 32)
    assert first.token_ids.equal(drawn(llama, [(text, 1.0)], 8, 32, seed=0).token_ids)
    assert not first.token_ids.equal(drawn(llama, [(text, 1.0)], 8, 32, seed=1).token_ids)
    assert len({tuple(window.tolist()) for window in first.token_ids}) == 8


def test_duplicate_documents_count_once(llama: Path, tmp_path: Path) -> None:
    once = text_file(tmp_path / "once.txt", prose(1), prose(2))
    twice = text_file(tmp_path / "twice.txt", prose(1), prose(2), prose(1), prose(2))
    one, two = (drawn(llama, [(text, 1.0)], 8, 32, seed=0) for text in (once, twice))
    assert one.token_ids.equal(two.token_ids)


def test_documents_open_with_bos(llama: Path, tmp_path: Path) -> None:
    text = text_file(tmp_path / "a.txt", *(prose(seed, 40) for seed in range(6)))
    windows = drawn(llama, [(text, 1.0)], 8, 64, seed=0).token_ids
    assert int((windows == 0).sum()) >= 2


def test_mix_follows_the_weights(llama: Path, tmp_path: Path) -> None:
    texts = [
        (text_file(tmp_path / "a.txt", prose(1)), 3.0),
        (text_file(tmp_path / "b.txt", prose(2)), 1.0),
    ]
    calibration = drawn(llama, texts, 8, 32, seed=0)
    assert [text["windows"] for text in calibration.description["texts"]] == [6, 2]
    assert calibration.token_ids.shape == (8, 32)
    # Each text is drawn from as it would be alone.
    for part, (text, _) in zip(calibration.token_ids.split([6, 2]), texts, strict=True):
        assert part.equal(drawn(llama, [(text, 1.0)], len(part), 32, seed=0).token_ids)


def test_text_that_is_the_evaluation_text_is_refused(tmp_path: Path) -> None:
    text = text_file(tmp_path / "a.txt", prose(1))
    shifted = text_file(tmp_path / "b.txt", "An opening. " + prose(1)[50:].upper())
    other = text_file(tmp_path / "c.txt", prose(2))
    for evaluation in (text, shifted):
        with pytest.raises(InvalidInput, match=f"{text}: .*% of its 13-grams stand in the eval"):
            check_overlap([other, text], [evaluation])
    assert check_overlap([text], [other]) == {text: 0.0}
    assert check_overlap([text], []) == {text: 0.0}


def test_overlap_is_the_share_of_13_grams() -> None:
    text = prose(1, 113)
    half = " ".join(text.split()[:63])
    own = ngrams_of([text])
    assert overlap_of(own, own) == 1.0
    assert overlap_of(own, ngrams_of([half])) == pytest.approx(51 / 101)
    assert overlap_of(own, ngrams_of([prose(9)])) == 0.0
    assert overlap_of(ngrams_of(["twelve words are too few"]), own) == 0.0


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "holds no text"), (" \n\n", "holds no text"), ("short", "shorter than one window")],
)
def test_unusable_text_is_refused(llama: Path, tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "a.txt").write_text(content)
    with pytest.raises(InvalidInput, match=message):
        drawn(llama, [(tmp_path / "a.txt", 1.0)], 4, 64, 0)


def test_too_few_windows_name_the_number(llama: Path, tmp_path: Path) -> None:
    text = text_file(tmp_path / "a.txt", prose(1, 30))
    with pytest.raises(InvalidInput, match=r"holds \d+ windows of 16 tokens, 1000 were asked"):
        drawn(llama, [(text, 1.0)], 1000, 16, 0)


def test_fewer_windows_are_all_that_the_texts_hold_of_the_mix(llama: Path, tmp_path: Path) -> None:
    """As if just so many had been asked for, down to the fewest."""
    texts = [
        (text_file(tmp_path / "a.txt", prose(1, 100)), 1.0),
        (text_file(tmp_path / "b.txt", prose(2)), 1.0),
    ]
    folder, screen = open_folder(llama), Mock()
    with listening(screen):
        found = calibrate(folder, texts, 1000, 16, seed=0, fewest=2)
    count = len(found.token_ids)
    assert 2 < count < 1000 and found.description["samples"] == count
    screen.note.assert_called_once_with(f"samples {count}: the text holds no 1000 windows")
    exact = drawn(llama, texts, count, 16, 0)
    assert found.token_ids.equal(exact.token_ids) and found.description == exact.description
    for more in (count + 1, 1000):
        with pytest.raises(InvalidInput, match=r"holds \d+ windows of 16 tokens, \d+ were asked"):
            calibrate(folder, texts, 1000, 16, seed=0, fewest=more)


@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(1, 60)), min_size=1, max_size=4),
    st.integers(1, 60),
    st.data(),
)
@example([(1, 1), (9, 60)], 60, None)
def test_counts_within_what_there_is_are_the_most(
    texts: list[tuple[int, int]], samples: int, data: st.DataObject | None
) -> None:
    """Beside every number tried in turn."""
    weights, available = [weight for weight, _ in texts], [held for _, held in texts]
    fewest = data.draw(st.integers(1, samples)) if data else 1
    fitting = [
        count
        for count in range(fewest, samples + 1)
        if all(map(le, window_counts(weights, count), available))
    ]
    found = counts_within(weights, samples, fewest, available)
    assert found == window_counts(weights, max(fitting, default=fewest))
    more = window_counts(weights, samples)
    assert all(share <= least + 1 for share, least in zip(found, more, strict=True))
    assert counts_within(weights, samples, None, available) == window_counts(weights, samples)


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_weights_must_be_positive(llama: Path, tmp_path: Path, weight: float) -> None:
    with pytest.raises(InvalidInput, match="must be positive"):
        drawn(llama, [(text_file(tmp_path / "a.txt", prose(1)), weight)], 1, 8, 0)


@pytest.mark.parametrize(
    "documents", [["plain"], ["two\nlines", "\u2028 odd separators \x85\u2029", "three"], ["  x "]]
)
def test_json_lines_hold_any_document(tmp_path: Path, documents: list[str]) -> None:
    write_rows(tmp_path / "a.jsonl", [{"text": document} for document in documents])
    assert read_documents(tmp_path / "a.jsonl") == documents


def test_token_ids_are_64_bit(llama: Path, tmp_path: Path) -> None:
    text = text_file(tmp_path / "a.txt", prose(1))
    assert drawn(llama, [(text, 1.0)], 1, 8, 0).token_ids.dtype == torch.int64
