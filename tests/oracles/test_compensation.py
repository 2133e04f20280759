"""Compensation of blocks: held-out windows, and the guard by its promise."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bipline.compression.compensation import collecting
from bipline.compression.compensation.held_out import difference
from bipline.compression.compensation.moments import Moments
from bipline.compression.compensation.streams import (
    divided,
    held_out_windows,
)
from bipline.model.block_loop import BlockLoop
from bipline.model.halves import Halves
from bipline.model.loading import load_model
from bipline.model.opening import open_checkpoint
from bipline.values.compensation import COMPENSATIONS, LADDER, Compensation
from bipline.values.plan import BlockPlan
from tests.compensated import put_in_layer
from tests.corrections import (
    DOUBLE,
    WINDOWS,
    corrected,
    narrowed,
    whole,
)
from tests.per_layer import LAYERS, masked_model, mixed_blocks, plan_of
from tests.tiny import tiny_model, token_windows

CASES = ["llama-gqa", "llama-mqa", "mistral-mha", "llama-gqa-biased", "qwen2-gqa"]


@pytest.fixture(scope="module", params=CASES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model") / request.param, request.param)


@given(st.integers(2, 300), st.floats(0.01, 0.99))
@settings(max_examples=100, deadline=None)
def test_held_out_windows_are_some_and_apart(windows: int, share: float) -> None:
    places = held_out_windows(windows, share)
    assert 1 <= len(places) == len(set(places)) < windows
    assert min(places) >= 0 and max(places) < windows
    fitted, held = divided(torch.arange(windows)[:, None], share)
    assert sorted([*fitted.flatten().tolist(), *held.flatten().tolist()]) == [*range(windows)]
    assert held.flatten().tolist() == places


@pytest.mark.parametrize("sequential", [False, True])
def test_held_out_windows_are_never_fitted(
    llama: Path, sequential: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted: list[list[Tensor]] = []
    plain = collecting.Collector.moments

    def recorded(self: collecting.Collector, centred: bool) -> Moments:
        found = plain(self, centred)
        fitted[-1].append(found.second.dense())
        return found

    monkeypatch.setattr(collecting.Collector, "moments", recorded)
    others = WINDOWS.clone()
    others[held_out_windows(len(WINDOWS), 0.1)] = token_windows(windows=1, seqlen=24, seed=5)
    checkpoint = open_checkpoint(llama)
    for windows in (WINDOWS, others):
        fitted.append([])
        # Whether there are random windows is asked of the held-out ones; here there are none.
        options = {"sequential": sequential, "random_windows": 0.0}
        corrected(checkpoint, narrowed(checkpoint), "obs", windows, **options)
    # What is chosen on held-out windows reaches later inputs; the first block's attention, which
    # is asked for twice, is free.
    same = fitted[0][:2] if sequential else fitted[0]
    assert all(a.equal(b) for a, b in zip(same, fitted[1], strict=False))


def test_halves_are_transformers_own_block(family_model: Path) -> None:
    loop = BlockLoop(open_checkpoint(family_model), DOUBLE)
    hidden = loop.embed(WINDOWS)
    for block in loop.blocks():
        halves = Halves.of(block)
        expected = block.run(hidden)
        assert float((halves.run(hidden) - expected).abs().max()) < 1e-12
        hidden = expected


@pytest.mark.parametrize("compensation", COMPENSATIONS)
@pytest.mark.parametrize("sequential", [False, True])
def test_a_model_that_keeps_everything_is_left_as_it_is(
    model: Path, compensation: Compensation, sequential: bool
) -> None:
    checkpoint = open_checkpoint(model)
    plan = whole(checkpoint)
    for correction, planned in zip(
        corrected(checkpoint, plan, compensation, sequential=sequential), plan.blocks, strict=True
    ):
        assert correction.tensors == {}
        assert correction.plan == planned
        assert correction.record.error == correction.record.error_without < 1e-25


@pytest.mark.parametrize("bias", ["off", "on"])
def test_sequential_begins_as_not_sequential(model: Path, bias: str) -> None:
    checkpoint = open_checkpoint(model)
    found = [
        corrected(
            checkpoint, narrowed(checkpoint), "obs", sequential=sequential, bias=bias, row_steps=0
        )[0]
        for sequential in (False, True)
    ]
    tensors = [
        {name: value for name, value in each.tensors.items() if name.startswith("self_attn")}
        for each in found
    ]
    assert set(tensors[0]) == set(tensors[1])
    for name, value in tensors[0].items():
        assert value.equal(tensors[1][name])
    assert found[1].record.attention is not None
    assert found[1].record.attention.beta is None, "one stream has no drift to correct"


@pytest.mark.parametrize("compensation", LADDER[1:])
@pytest.mark.parametrize("sequential", [False, True])
def test_no_block_is_worse_than_uncorrected(
    model: Path, compensation: Compensation, sequential: bool
) -> None:
    """Hardly more tokens than columns, and collinear ones: many of them are one window."""
    checkpoint = open_checkpoint(model)
    alike = WINDOWS[:6].clone()
    alike[1:4] = alike[0]
    for windows, seed in ((WINDOWS[:5], 0), (alike, 1), (WINDOWS, 2)):
        plan = narrowed(checkpoint, seed, share=0.4)
        for correction in corrected(checkpoint, plan, compensation, windows, sequential=sequential):
            record = correction.record
            assert record.error <= record.error_without
            for sublayer in (record.attention, record.ffn):
                assert sublayer is not None
                if sublayer.form != "none":
                    assert sublayer.errors[sublayer.form] == min(sublayer.errors.values())


def test_obs_keeps_as_many_as_the_plan(model: Path) -> None:
    checkpoint = open_checkpoint(model)
    plan = narrowed(checkpoint)
    for correction, planned in zip(corrected(checkpoint, plan, "obs"), plan.blocks, strict=True):
        assert correction.plan.widths == planned.widths
        record = correction.record.ffn
        assert record is not None
        replaced = set(correction.plan.ffn_channels) - set(planned.ffn_channels)
        assert record.replaced == len(replaced)


@pytest.mark.parametrize("compensation", COMPENSATIONS)
@pytest.mark.parametrize("sequential", [False, True])
def test_blocks_of_any_width(tmp_path: Path, compensation: Compensation, sequential: bool) -> None:
    checkpoint = open_checkpoint(
        tiny_model(tmp_path / "model", "llama-gqa", num_hidden_layers=LAYERS)
    )
    plan = plan_of(checkpoint, mixed_blocks(checkpoint.shape))
    found = corrected(
        checkpoint,
        plan,
        compensation,
        sequential=sequential,
        bias="on" if compensation == "bias" else "auto",
    )
    for correction, planned in zip(found, plan.blocks, strict=True):
        assert correction.plan.widths == planned.widths
        assert (correction.record.attention is None) == (not planned.attention_groups)
        assert (correction.record.ffn is None) == (not planned.ffn_channels)
        groups, channels = correction.plan.widths
        shape = checkpoint.shape
        keys = groups * shape.head_dim
        queries = keys * shape.queries_per_group
        shapes = {
            "self_attn.o_proj.weight": (shape.hidden_size, queries),
            "mlp.down_proj.weight": (shape.hidden_size, channels),
            "self_attn.q_proj.weight": (queries, shape.hidden_size),
            "self_attn.k_proj.weight": (keys, shape.hidden_size),
            "self_attn.v_proj.weight": (keys, shape.hidden_size),
            "mlp.up_proj.weight": (channels, shape.hidden_size),
            "mlp.gate_proj.weight": (channels, shape.hidden_size),
        }
        for name, tensor in correction.tensors.items():
            if name.endswith("weight"):
                assert tensor.shape == shapes[name]


@pytest.mark.parametrize(("sequential", "heads"), [(False, False), (True, False), (True, True)])
def test_recorded_errors_are_those_of_plain_transformers(
    llama: Path, sequential: bool, heads: bool
) -> None:
    """The first block's errors on held-out windows, by masking and replacing in the dense model.

    Of groups that stay all query ``heads``, or one of them.
    """
    checkpoint = open_checkpoint(llama)
    plan = narrowed(checkpoint)
    if heads:
        listed = [{"query_heads": ((1,),) * len(block.attention_groups)} for block in plan.blocks]
        pairs = zip(plan.blocks, listed, strict=True)
        blocks = tuple(block.model_copy(update=each) for block, each in pairs)
        plan = plan.model_copy(update={"blocks": blocks})
    correction = corrected(checkpoint, plan, "obs", sequential=sequential)[0]
    _, held = divided(WINDOWS, 0.1)

    def error_of(blocks: list[BlockPlan], tensors: dict[str, Tensor]) -> float:
        masked = masked_model(llama, checkpoint, blocks)
        put_in_layer(masked.model.layers[0], checkpoint, blocks[0], tensors)
        with torch.no_grad():
            output, target = (
                each(held, output_hidden_states=True).hidden_states[1]
                for each in (masked, load_model(llama, DOUBLE))
            )
        return difference(output, target, checkpoint.config["rms_norm_eps"]) / held.numel()

    record = correction.record
    assert record.error_without == pytest.approx(error_of(list(plan.blocks), {}))
    chosen = [correction.plan, *plan.blocks[1:]]
    assert record.error == pytest.approx(error_of(chosen, correction.tensors))
    assert record.error < record.error_without
