"""Compensation in little memory: triangles by dense algebra, and how much is held at a time."""

from __future__ import annotations

import ctypes
import gc
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import accumulate, count
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from bipline.compression.compensation import (
    candidates,
    closed_forms,
    fitting,
    memory,
    obs,
    triangles,
)
from bipline.compression.compensation.candidates import Candidate, Sublayer, uncorrected
from bipline.compression.compensation.memory import compensation_bytes
from bipline.compression.compensation.moments import MomentSums
from bipline.compression.compensation.obs import elimination_of, remove_greedily
from bipline.compression.compensation.options import CompensationOptions
from bipline.compression.compensation.trials import VERSIONS_TOGETHER, Trials
from bipline.compression.compensation.triangles import Triangles, lower_rows, lower_subtract
from bipline.model.shapes import ModelShape
from bipline.values.compensation import LADDER, Compensation

DOUBLE = torch.float64
CPU = torch.device("cpu")
LLAMA_3_8B = ModelShape(
    hidden_size=4096,
    intermediate_size=14336,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    num_hidden_layers=32,
    vocab_size=128256,
    tie_word_embeddings=False,
)


def draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=DOUBLE)


def triangles_of(columns: int, rank: int = 50) -> tuple[Triangles, Tensor]:
    """A matrix in its triangle, and the same as an ordinary one."""
    x, found = draw(rank, columns), Triangles(columns, CPU)
    found.add_product(x)
    return found, x.T @ x


@pytest.fixture(params=[2, 4, 512])
def tile(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    for name in ("TILE_COLUMNS", "STRIP_COLUMNS"):
        monkeypatch.setattr(triangles, name, request.param)
    return int(request.param)


# Triangles.


@pytest.mark.parametrize("columns", [1, 3, 4, 13])
def test_work_in_one_triangle_is_that_of_dense_algebra(columns: int, tile: int) -> None:
    found, expected = triangles_of(columns)
    regular = expected + 0.3 * torch.eye(columns, dtype=DOUBLE)
    found.factor(0.3)
    torch.testing.assert_close(found.lower.tril(), torch.linalg.cholesky(regular))
    sides = draw(6, columns, seed=3)
    solved = sides @ torch.linalg.inv(regular)
    found.solve_(sides)
    torch.testing.assert_close(sides, solved)
    found.invert()
    inverse = torch.linalg.inv(regular)
    torch.testing.assert_close(triangles.mirrored(found.lower), inverse)
    for place in range(columns):
        rows = lower_rows(found.lower, slice(place, place + 1))
        torch.testing.assert_close(rows, inverse[place : place + 1])
    left, right = draw(2, columns, seed=4), draw(2, columns, seed=5)
    lower_subtract(found.lower, left, right)
    torch.testing.assert_close(found.lower.tril(), (inverse - left.T @ right).tril())
    torch.testing.assert_close(found.dense(), expected)


@pytest.mark.parametrize("columns", [1, 5, 13])
def test_rows_and_parts(columns: int, tile: int) -> None:
    found, expected = triangles_of(columns)
    places = torch.arange(0, columns, 2)
    torch.testing.assert_close(found.rows(places), expected[places])
    torch.testing.assert_close(found.part(places).dense(), expected[places][:, places])
    torch.testing.assert_close(found.diagonal, expected.diagonal())


def test_a_factorisation_that_fails_begins_again(tile: int) -> None:
    found, expected = triangles_of(12, rank=5)
    found.factor(0.0)
    lower = found.lower.tril()
    torch.testing.assert_close(lower @ lower.T, expected, atol=1e-8, rtol=1e-8)
    torch.testing.assert_close(found.dense(), expected)


def test_a_solve_in_float32_is_near_to_one_in_float64() -> None:
    found, expected = triangles_of(40, rank=60)
    lift = 1e-3 * float(expected.diagonal().mean())
    sides = draw(6, 40, seed=3)
    single = sides.float()
    found.factor(lift)
    found.solve_(sides)
    found.solve_(single)
    assert float((single.double() - sides).norm() / sides.norm()) < 1e-4


@pytest.mark.parametrize("width", [1, 4])
def test_obs_chooses_the_same_in_float32(width: int) -> None:
    x = draw(400, 96) @ draw(96, 96, seed=1)
    weight = draw(20, 96, seed=2)
    orders = []
    for dtype in (torch.float32, DOUBLE):
        sums = MomentSums(96, 0, CPU, dtype)
        sums.add(x.to(dtype), torch.ones(400, dtype=dtype))
        elimination = elimination_of(weight.to(dtype), sums.moments().second, 1e-2, width)
        orders.append(remove_greedily(elimination, 60 // width))
    assert orders[0] == orders[1]


# How much is held.


def test_only_a_few_versions_live_at_a_time() -> None:
    living: weakref.WeakSet[Any] = weakref.WeakSet()
    most = 0

    def versions() -> Iterator[Candidate]:
        nonlocal most
        for number in range(25):
            weight = torch.full((1, 1), float(number))
            living.add(weight)
            most = max(most, len(living))
            yield Candidate("obs", (0,), torch.zeros(1, dtype=torch.int64), weight, None)
            del weight

    def errors(few: Sequence[Candidate]) -> list[float]:
        return [abs(float(each.weight) - 13.2) for each in few]

    tried = Trials(errors, uncorrected(sublayer_of(1, 1, 1.0)))
    tried.measure(versions())
    assert float(tried.chosen.weight) == 13
    assert tried.by_compensation["obs"] == pytest.approx(0.2)
    # Those that are measured together, the best and one that has just been made.
    assert most <= VERSIONS_TOGETHER + 2


def most_bytes(work: Callable[[], object]) -> int:
    """The most bytes that PyTorch held at a time, beyond what it held before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    events = [
        (each.start_ns(), each.nbytes())
        for each in profiler.profiler.kineto_results.events()
        if each.name() == "[memory]"
    ]
    most = max(accumulate(size for _, size in sorted(events, key=lambda each: each[0])))
    del profiler, events
    _give_back()
    return most


def _give_back() -> None:
    """Return what a profile's many small records left to the system, where the library can.

    Gigabytes else stay with the process, and later tests of its memory count them.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)


def sublayer_of(outputs: int, columns: int, share: float = 0.7) -> Sublayer:
    return Sublayer(
        name="mlp.down_proj",
        weight=draw(outputs, columns).to(torch.bfloat16),
        bias=None,
        dtype=torch.bfloat16,
        width=1,
        kept=tuple(range(round(share * columns))),
        importance=None,
        intercept=False,
    )


def test_the_target_holds_for_an_8b_shape() -> None:
    options = CompensationOptions()
    for ratio, most in ((0.0, 6.4e9), (0.3, 5.1e9)):
        assert compensation_bytes(LLAMA_3_8B, "obs", options, 2, 4, ratio) < most


def test_whatever_is_simpler_needs_no_more() -> None:
    options = CompensationOptions()
    sizes = [compensation_bytes(LLAMA_3_8B, compensation, options, 2) for compensation in LADDER]
    assert sizes == sorted(sizes)
    one_stream = options.model_copy(update={"sequential": False})
    assert compensation_bytes(LLAMA_3_8B, "obs", one_stream, 2) < sizes[-1]
    for fewer in ({"input_maps": False}, {"row_steps": 0}):
        less = options.model_copy(update=fewer)
        assert compensation_bytes(LLAMA_3_8B, "obs", less, 2) < sizes[-1]


@pytest.mark.parametrize("compensation", ["least-squares", "obs"])
@pytest.mark.parametrize("share", [0.5, 0.7, 0.99])
def test_a_fit_takes_what_is_predicted(
    compensation: Compensation, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs, columns = 128, 768
    for name in ("TILE_COLUMNS", "STRIP_COLUMNS"):
        monkeypatch.setattr(triangles, name, 32)
    monkeypatch.setattr(memory, "TILE_COLUMNS", 32)
    monkeypatch.setattr(obs, "PENDING_COLUMNS", 8)
    monkeypatch.setattr(candidates, "ROWS_TOGETHER", 32)
    monkeypatch.setattr(closed_forms, "ROWS_TOGETHER", 32)
    options = CompensationOptions()
    sublayer = sublayer_of(outputs, columns, share)
    x, drift = draw(64, columns).float(), draw(64, outputs, seed=1).float()

    def fit() -> None:
        sums = MomentSums(columns, outputs, CPU, torch.float32)
        sums.add(x, torch.ones(64), drift)
        given, asked = sums.moments(), sublayer
        if compensation == "obs":
            asked = replace(asked, chosen=fitting.chosen_groups(asked, given, options.ridge))
        # Ever worse, so that all simpler ones are fitted too.
        worse = count()
        fitting.fitted(
            asked, given, compensation, options, lambda few: [float(next(worse)) for _ in few]
        )
        # The matrix as it is, then of every one four shares of the drift and two more ridges.
        assert next(worse) == (1 + 6 + 6 if compensation == "obs" else 1 + 6)

    sizes = {"hidden_size": outputs, "intermediate_size": columns}
    heads = {"num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 8}
    shape = LLAMA_3_8B.model_copy(update={**sizes, **heads})
    found = most_bytes(fit)
    predicted = compensation_bytes(shape, compensation, options, 2, 2, 1 - share)
    assert found <= predicted <= 1.5 * found
