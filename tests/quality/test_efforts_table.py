"""Shares of a peer's increase, with their errors, and the table they stand in."""

from __future__ import annotations

import math

import pytest
import torch

from benchmarks.efforts import DENSE, EFFORTS, PEER, READ_MORE, share, share_error, table


def losses(perplexity: float, windows: int = 8) -> list[float]:
    return [math.log(perplexity)] * windows


def test_a_share_is_of_the_increase_of_perplexity() -> None:
    dense, peer, own = (torch.tensor(losses(each)).double() for each in (50.0, 70.0, 60.0))
    assert share(dense, peer, own) == pytest.approx(0.5)
    assert share(dense, peer, dense) == pytest.approx(0.0)
    assert share_error(dense, peer, own) == pytest.approx(0.0, abs=1e-9)


def test_an_error_grows_with_what_windows_differ_by() -> None:
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(64, generator=generator).double()
    dense = torch.full((64,), 3.0).double()
    small, large = (share_error(dense, dense + 0.2, dense + 0.1 + k * noise) for k in (0.01, 0.1))
    assert 0 < small < large
    # By hand: the standard error of the mean, as a share of the increase.
    assert small == pytest.approx(float(0.01 * noise.std()) / 8 / 0.2, rel=0.25)


def test_the_table_tells_what_is_there() -> None:
    told = [
        {"model": "reference-llm", "ratio": ratio, "row": row, "processor_seconds": 7.0,
         "losses": {"novel": losses(value), "wikitext2": losses(value)}}
        for ratio, row, value in (("", DENSE, 50.0), ("0.2", PEER, 60.0), ("0.2", EFFORTS[0], 58.0))
    ]  # fmt: skip
    text = table(told)
    assert (
        "| reference-llm, 0.2, novel | 50.00 | 60.00 | - | 58.00 (0.80 ± 0.00) | - | - | 7 |"
        in text
    )
    assert "0.5" not in text
    more = [
        {**told[1], "row": row, "losses": {"novel": losses(value), "wikitext2": losses(value)}}
        for row, value in ((READ_MORE, 58.0), (EFFORTS[-1], 54.0))
    ]
    text = table([*told, *more])
    assert "| 58.00 (0.80 ± 0.00) | 58.00 (0.80 ± 0.00) | - | 54.00 (0.40 ± 0.00; 0.50) |" in text
