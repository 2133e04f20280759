"""What stages have to do at least, against counts taken from a real forward pass."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bipline.compression.least_work import compensation_operations, least_work
from bipline.model.block_loop import BlockLoop
from bipline.model.floor import Counted, Rates, Work, measure_rates
from bipline.model.opening import open_checkpoint
from bipline.values.compensation import BlockRecord, CompensationRecord, SublayerRecord
from tests.corrections import narrowed, whole
from tests.tiny import token_windows

WINDOWS, SEQLEN, WRITTEN = 3, 16, 12345


def counted(model: Path, backend: SDPBackend) -> int:
    """Operations of a pass; torch counts attention's products where they are plain ones."""
    loop = BlockLoop(open_checkpoint(model), torch.float64)
    hidden = loop.embed(token_windows(windows=WINDOWS, seqlen=SEQLEN))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(backend):
        for index in range(loop.checkpoint.shape.num_hidden_layers):
            hidden = loop.block(index).run(hidden)
    return counter.get_total_flops()


def test_a_pass_over_windows(llama: Path) -> None:
    checkpoint = open_checkpoint(llama)
    works = least_work(checkpoint, whole(checkpoint), "llm-bip-glu", WINDOWS, SEQLEN, WRITTEN)
    assert works.keys() == {"score", "prune"}
    assert works["prune"] == Work(read=WRITTEN, written=WRITTEN)
    linear = counted(llama, SDPBackend.FLASH_ATTENTION)
    attention = counted(llama, SDPBackend.MATH) - linear
    assert attention > 0
    # Attention that knows it is causal leaves half of its products out.
    assert works["score"].operations == linear + attention / 2
    stored = checkpoint.tensors
    assert works["score"].read == sum(stored[n].num_bytes for n in stored if ".layers." in n)


def test_what_was_not_scored_is_read_alone(llama: Path) -> None:
    checkpoint = open_checkpoint(llama)
    works = least_work(checkpoint, whole(checkpoint), "llm-bip-glu", 0, SEQLEN, WRITTEN)
    assert works["score"].operations == 0 < works["score"].read


FITTED, HELD_OUT = 96, 32
WHOLE = SublayerRecord(form="none", errors={"none": 0.5})
CORRECTED = SublayerRecord(form="obs", errors={"none": 0.5, "obs": 0.25}, rows_fitted=True)


def compensated(model: Path, attention: SublayerRecord, row_steps: int) -> Counted:
    """Operations of ``obs`` that fitted the FFN of every block."""
    checkpoint = open_checkpoint(model)
    record = CompensationRecord(
        options={"sequential": True, "row_steps": row_steps},
        calibration_digest="", asked_plan="", corrections="",
        fitted_tokens=FITTED, held_out_tokens=HELD_OUT,
        blocks=tuple(
            BlockRecord(index=index, attention=attention, ffn=CORRECTED, error_without=1, error=0.5)
            for index in range(checkpoint.shape.num_hidden_layers)
        ),
    )  # fmt: skip
    return compensation_operations(checkpoint.shape, narrowed(checkpoint), record, SEQLEN)


def test_moments_are_of_matrices_that_were_fitted(llama: Path) -> None:
    """Beside the products themselves: of x x^T a triangle, of the drift all."""
    shape = open_checkpoint(llama).shape
    columns = shape.num_attention_heads * shape.head_dim
    x, drift = torch.ones(FITTED, columns), torch.ones(FITTED, shape.hidden_size)
    with FlopCounterMode(display=False) as counter:
        square, beside = x.T @ x, x.T @ drift
    assert (square.shape, beside.shape) == ((columns, columns), (columns, shape.hidden_size))
    own = counter.get_total_flops() - FITTED * columns**2
    fitted, left = (compensated(llama, each, 0) for each in (CORRECTED, WHOLE))
    assert fitted.wide - left.wide == shape.num_hidden_layers * own
    assert fitted.all - fitted.wide - fitted.quick == left.all - left.wide - left.quick


def test_a_floor_is_of_the_dtypes_that_work_is_done_in(llama: Path) -> None:
    """Passes at the rate of the windows' dtype, moments in float32, steps for rows in bfloat16."""
    counted = compensated(llama, CORRECTED, 4)
    passes = counted.all - counted.wide - counted.quick
    assert min(passes, counted.wide, counted.quick) > 0
    work = Work(0, 0, counted.all, counted.wide, counted.quick)
    plain = Rates(read=1, write=1, compute=100.0)
    assert work.seconds(plain) == counted.all / 100
    expected = passes / 100 + counted.wide / 10 + counted.quick / 1000
    assert abs(work.seconds(replace(plain, wide=10.0, quick=1000.0)) - expected) < 1e-6 * expected


def test_rates_of_other_dtypes_are_measured_where_work_is_done_in_them(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bipline.model.floor.SAMPLE_BYTES", 1 << 16)
    for able, dtype, wide, quick in (
        (True, torch.float32, False, True),
        (False, torch.float32, False, False),
        (True, torch.bfloat16, True, False),
        (True, torch.float64, False, False),
    ):
        monkeypatch.setattr("bipline.model.floor.multiplies_bfloat16", lambda able=able: able)
        rates = measure_rates(BlockLoop(open_checkpoint(llama), dtype), SEQLEN, tmp_path)
        assert (rates.wide is not None, rates.quick is not None) == (wide, quick), dtype
