"""float32 by oneDNN: as near to float64 as float32 is, where nothing would be rounded alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from bipline.model import products
from bipline.model.block_loop import BlockLoop
from bipline.model.halves import Halves
from bipline.model.opening import open_checkpoint
from bipline.model.products import (
    LONG_WINDOW,
    onednn_keeps_float32,
    quick_attention,
    quick_float32,
    usual_float32,
)
from tests.command import run
from tests.comparing import SAMPLES, SEQLEN, Bench

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
    monkeypatch.setattr(products, "processor", lambda: "AMD EPYC")
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


def test_a_token_at_a_time_is_multiplied_as_usual(able: pytest.MonkeyPatch) -> None:
    with quick_float32():
        with pytest.raises(ZeroDivisionError), usual_float32():
            assert torch.get_float32_matmul_precision() == "highest"
            raise ZeroDivisionError
        assert torch.get_float32_matmul_precision() == products.LEAVE
    with usual_float32():
        assert torch.get_float32_matmul_precision() == "highest"
    assert torch.get_float32_matmul_precision() == "highest"


@given(st.integers(1, 3), st.integers(2, LONG_WINDOW - 1), st.integers(1, 3), st.integers(1, 40))
@settings(max_examples=30, deadline=None)
def test_attention_of_short_windows_is_what_it_is_without_the_leave(
    windows: int, tokens: int, heads: int, size: int
) -> None:
    drawing = torch.Generator().manual_seed(tokens)
    q, k, v = torch.randn(3, windows, heads, tokens, size, generator=drawing)
    with quick_float32(), quick_attention(tokens):
        found = scaled_dot_product_attention(q, k, v, is_causal=True)
    assert torch.equal(found, scaled_dot_product_attention(q, k, v, is_causal=True))


@pytest.mark.parametrize(("tokens", "usual"), [(LONG_WINDOW - 1, True), (LONG_WINDOW, False)])
def test_the_attention_of_short_windows_alone_is_as_usual(
    tokens: int, usual: bool, able: pytest.MonkeyPatch
) -> None:
    seen = list[str]()
    able.setattr(products, "scaled_dot_product_attention", torch.sin)  # told apart by name alone
    able.setattr(products, "usual_float32", lambda: seen.append("usual") or usual_float32())
    with quick_float32(), quick_attention(tokens):
        torch.cos(torch.ones(1))
        assert not seen
        torch.sin(torch.ones(1))
        assert torch.get_float32_matmul_precision() == products.LEAVE
    assert seen == ["usual"] * usual
    with quick_attention(tokens):  # without the leave there is nothing to take back
        torch.sin(torch.ones(1))
    assert seen == ["usual"] * usual


def test_a_block_and_its_half_attend_so(llama: Path, able: pytest.MonkeyPatch) -> None:
    seen = list[str]()
    able.setattr(products, "usual_float32", lambda: seen.append("") or usual_float32())
    loop = BlockLoop(open_checkpoint(llama))
    block, hidden = loop.block(0), torch.randn(2, 9, loop.checkpoint.shape.hidden_size)
    with quick_float32():
        block.run(hidden)
        assert len(seen) == 1
        Halves.of(block).attention_output(hidden)
    assert len(seen) == 2


@pytest.mark.parametrize(
    "found", [{}, {"avx512_f": False}, {"avx512_f": True, "amx_bf16": True}, {"avx2": True}]
)
def test_no_leave_where_kernels_round_or_are_no_wider(
    found: dict[str, bool], able: pytest.MonkeyPatch
) -> None:
    able.setattr(torch.cpu, "get_capabilities", lambda: found)
    with quick_float32():
        assert torch.get_float32_matmul_precision() == "highest"


def test_no_leave_where_mkl_takes_the_whole_width(able: pytest.MonkeyPatch) -> None:
    able.setattr(products, "processor", lambda: "Intel(R) Xeon(R) Platinum 8375C CPU @ 2.90GHz")
    assert not onednn_keeps_float32()


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


def test_all_of_a_run_multiplies_so_but_what_is_timed(
    able: pytest.MonkeyPatch, llama: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    seen, plain = set[str](), torch.nn.functional.linear

    def watched(*given: Tensor | None) -> Tensor:
        seen.add(torch.get_float32_matmul_precision())
        return plain(*given)

    able.setattr(torch.nn.functional, "linear", watched)
    attentions = list[str]()
    able.setattr(products, "usual_float32", lambda: attentions.append("") or usual_float32())
    # Told apart from what is usual, and rounded by no processor, whichever the tests run on.
    able.setattr(products, "LEAVE", "high")
    bench, state = Bench.of(llama, tmp_path), ("--device", "cpu", "--state", tmp_path / "state")
    windows = ("--samples", str(SAMPLES), "--seqlen", str(SEQLEN))
    pruned, text = tmp_path / "pruned", bench.texts["one"]
    commands = {
        "prune": (
            llama, "--effort", "quick", "--ratio", "0.3", "--calibration", text, *windows,
            "--out", pruned,
        ),
        "recover": (
            pruned, "--text", text, "--judge", bench.texts["two"], "--steps", "1",
            "--seqlen", str(SEQLEN), "--out", tmp_path / "recovered",
        ),
        "evaluate": (pruned, "--text", f"two={bench.texts['two']}", "--seqlen", str(SEQLEN)),
        "speed": (
            pruned, "--speed-prompt-tokens", "4", "--speed-decoded-tokens", "2",
            "--speed-repeats", "2", "--speed-batch", "1",
        ),
    }  # fmt: skip
    precisions = {}
    for command, arguments in commands.items():
        seen.clear()
        outcome = run(capfd, command, *map(str, (*arguments, *state)))
        assert outcome.code == 0, outcome
        precisions[command] = set(seen)
        assert bool(attentions) == (command != "speed")
        attentions.clear()
    quick = {products.LEAVE}
    assert precisions == {
        "prune": quick, "recover": quick, "evaluate": quick, "speed": {"highest"},
    }  # fmt: skip
