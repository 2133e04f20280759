"""float32 by oneDNN: as near to float64 as float32 is, where nothing would be rounded alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bipline.model import products
from bipline.model.products import onednn_keeps_float32, quick_float32
from bipline.stages.speed import STAGE as SPEED
from bipline.stages.stage import Context, Stage
from bipline.storage.local_store import LocalStore

ABLE = {"avx512_f": True, "amx_bf16": False}


@pytest.fixture(autouse=True)
def asked_anew() -> Iterator[None]:
    onednn_keeps_float32.cache_clear()
    yield
    onednn_keeps_float32.cache_clear()


@pytest.fixture
def able(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A processor whose kernels are taken, whatever this one is."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: ABLE)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(products, "_rounds_nothing", lambda: True)
    return monkeypatch


@given(st.integers(1, 300), st.integers(1, 700), st.integers(1, 300), st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_products_are_as_near_to_float64_as_float32_is(
    rows: int, terms: int, columns: int, seed: int
) -> None:
    drawing = torch.Generator().manual_seed(seed)
    left = torch.randn(rows, terms, generator=drawing)
    right = torch.randn(terms, columns, generator=drawing)
    with quick_float32():
        found = left @ right
    # A sum of n products in float32 is off by n roundings at most.
    bound = terms * 2.0**-24 * (left.double().abs() @ right.double().abs())
    assert ((found - left.double() @ right.double()).abs() <= bound).all()


def test_what_torch_may_round_is_as_before_afterwards(able: pytest.MonkeyPatch) -> None:
    with pytest.raises(ZeroDivisionError), quick_float32():
        assert torch.get_float32_matmul_precision() == products.LEAVE
        with quick_float32():
            pass
        assert torch.get_float32_matmul_precision() == products.LEAVE
        raise ZeroDivisionError
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize(
    "found", [{}, {"avx512_f": False}, {"avx512_f": True, "amx_bf16": True}, {"avx2": True}]
)
def test_no_leave_where_kernels_round_or_are_no_wider(
    found: dict[str, bool], able: pytest.MonkeyPatch
) -> None:
    able.setattr(torch.cpu, "get_capabilities", lambda: found)
    with quick_float32():
        assert torch.get_float32_matmul_precision() == "highest"


def test_no_leave_beside_a_gpu(able: pytest.MonkeyPatch) -> None:
    able.setattr(torch.cuda, "is_available", lambda: True)
    assert not onednn_keeps_float32()


def test_a_product_that_shows_rounding_takes_the_leave_back(able: pytest.MonkeyPatch) -> None:
    able.setattr(products, "_rounds_nothing", lambda: False)
    with quick_float32():
        assert torch.get_float32_matmul_precision() == "highest"


def test_rounding_to_bfloat16_shows() -> None:
    assert products._rounds_nothing()
    between = torch.full((products.TERMS,), products.BETWEEN)
    assert float(between.bfloat16().float().sum()) != products.BETWEEN * products.TERMS


def test_who_set_onednn_alone_is_left_alone(able: pytest.MonkeyPatch) -> None:
    before = torch.backends.mkldnn.matmul.fp32_precision
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    try:
        with quick_float32():
            assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"
        assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = before


@pytest.mark.parametrize(("stage", "leave"), [("made", "medium"), ("speed", "highest")])
def test_stages_multiply_so_and_speeds_are_those_of_torch_itself(
    stage: str, leave: str, able: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    context, seen = Context(LocalStore(tmp_path)), list[str]()
    doing = SPEED if stage == "speed" else Stage("made", "made", ())
    doing.run(context, "0" * 64, lambda *_: seen.append(torch.get_float32_matmul_precision()))
    assert seen == [leave]
    assert torch.get_float32_matmul_precision() == "highest"
