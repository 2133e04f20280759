"""Compensation: closed forms by dense solvers, OBS by enumeration, the guard by its promise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bipline.base.errors import InvalidInput
from bipline.compression.compensation import collecting, obs, triangles
from bipline.compression.compensation.closed_forms import LeastSquares, bias_correction, factor
from bipline.compression.compensation.drawn_windows import divided_with_drawn
from bipline.compression.compensation.engine import BlockCorrection, compensate
from bipline.compression.compensation.held_out import difference
from bipline.compression.compensation.moments import Moments, MomentSums, moments_bytes
from bipline.compression.compensation.obs import elimination_of, remove_greedily
from bipline.compression.compensation.options import CompensationOptions
from bipline.compression.compensation.streams import (
    divided,
    held_out_windows,
)
from bipline.compression.compensation.tokens import check_tokens, least_samples
from bipline.compression.computing import Computing
from bipline.model.block_loop import BlockLoop
from bipline.model.checkpoint import Checkpoint
from bipline.model.halves import Halves
from bipline.model.loading import load_model
from bipline.model.opening import open_checkpoint
from bipline.model.shapes import ModelShape
from bipline.values.compensation import FORMS, Form
from bipline.values.plan import BlockPlan, PruningPlan
from tests.compensated import put_in_layer
from tests.per_layer import LAYERS, kept, masked_model, mixed_blocks, plan_of
from tests.tiny import tiny_model, token_windows

DOUBLE = torch.float64
CPU = torch.device("cpu")
COMPUTING = Computing(dtype=DOUBLE)
WINDOWS = token_windows(windows=12, seqlen=24)
CASES = ["llama-gqa", "llama-mqa", "mistral-mha", "llama-gqa-biased", "qwen2-gqa"]


@pytest.fixture(scope="module", params=CASES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model") / request.param, request.param)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=seeded(seed), dtype=DOUBLE)


def inputs_of(tokens: int, columns: int, seed: int = 0) -> Tensor:
    """Correlated inputs with a mean that is not zero."""
    mixed = draw(tokens, columns, seed=seed) @ draw(columns, columns, seed=seed + 1)
    return mixed + draw(1, columns, seed=seed + 2)


def moments_of(
    x: Tensor,
    drift: Tensor | None = None,
    weights: Tensor | None = None,
    centred: bool = False,
) -> Moments:
    sums = MomentSums(x.shape[1], 0 if drift is None else drift.shape[1], CPU)
    sums.add(x, torch.ones(len(x), dtype=DOUBLE) if weights is None else weights, drift)
    return sums.moments(centred=centred)


def narrowed(checkpoint: Checkpoint, seed: int = 0, share: float = 0.5) -> PruningPlan:
    """A plan that keeps a drawn share of the groups and channels, as many in every block."""
    shape, generator = checkpoint.shape, seeded(seed)

    def some(count: int) -> list[int]:
        return torch.randperm(count, generator=generator)[: max(1, round(share * count))].tolist()

    blocks = [
        kept(some(shape.num_key_value_heads), some(shape.intermediate_size))
        for _ in range(shape.num_hidden_layers)
    ]
    return plan_of(checkpoint, blocks, "uniform")


def whole(checkpoint: Checkpoint) -> PruningPlan:
    return narrowed(checkpoint, share=1.0)


def corrected(
    checkpoint: Checkpoint, plan: PruningPlan, form: Form, windows: Tensor = WINDOWS, **options: Any
) -> list[BlockCorrection]:
    given_options = CompensationOptions(**options)
    divided = divided_with_drawn(COMPUTING.loop(checkpoint), windows, form, given_options)
    return list(compensate(checkpoint, plan, divided, COMPUTING, form, given_options))


# Moments.


@given(st.integers(1, 9), st.integers(2, 30), st.lists(st.integers(0, 30), max_size=4))
@settings(max_examples=50, deadline=None)
def test_moments_do_not_depend_on_how_tokens_are_divided(
    columns: int, tokens: int, cuts: list[int]
) -> None:
    x, e, weights = inputs_of(tokens, columns), draw(tokens, 3, seed=7), draw(tokens).square() + 0.1
    sums = MomentSums(columns, 3, CPU)
    for part in torch.arange(tokens).tensor_split(sorted(cuts)):
        sums.add(x[part], weights[part], e[part])
    found, shares = sums.moments(), weights / weights.sum()
    torch.testing.assert_close(found.second.dense(), x.T @ (shares[:, None] * x))
    torch.testing.assert_close(found.mean, shares @ x)
    torch.testing.assert_close(found.drift, e.T @ (shares[:, None] * x))
    torch.testing.assert_close(found.drift_mean, shares @ e)
    assert found.tokens == tokens


@given(st.integers(1, 9), st.integers(1, 20), st.integers(1, 20), st.booleans())
@settings(max_examples=50, deadline=None)
def test_moments_that_were_given_can_be_added_to(
    columns: int, first: int, second: int, centred: bool
) -> None:
    tokens = first + second
    x, e, weights = inputs_of(tokens, columns), draw(tokens, 3, seed=7), draw(tokens).square() + 0.1
    sums = MomentSums(columns, 3, CPU)
    sums.add(x[:first], weights[:first], e[:first])
    given_first = sums.moments(centred=centred)
    given_first.second.factor(1.0)
    given_first.second.invert()
    sums.add(x[first:], weights[first:], e[first:])
    found, expected = sums.moments(centred=centred), moments_of(x, e, weights, centred)
    torch.testing.assert_close(found.second.dense(), expected.second.dense())
    torch.testing.assert_close(found.mean, expected.mean)
    torch.testing.assert_close(found.drift, expected.drift)
    torch.testing.assert_close(found.drift_mean, expected.drift_mean)


def test_moments_are_taken_tile_by_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    x = inputs_of(20, 11)
    monkeypatch.setattr(triangles, "TILE_COLUMNS", 2)
    torch.testing.assert_close(moments_of(x).second.dense(), x.T @ x / 20)


def test_bytes_of_moments() -> None:
    for products in (torch.float32, DOUBLE):
        sums = MomentSums(13, 5, CPU, products)
        held = sum(tensor.nbytes for tensor in vars(sums).values() if isinstance(tensor, Tensor))
        held += vars(sums)["_second"].upper.untyped_storage().nbytes()
        assert moments_bytes(13, 5, products.itemsize) == held


def test_moments_that_are_not_finite() -> None:
    with pytest.raises(InvalidInput, match="block 0: activations are not finite"):
        moments_of(torch.full((3, 2), torch.inf, dtype=DOUBLE))


def test_too_few_tokens_are_refused_with_the_number(llama: Path) -> None:
    checkpoint = open_checkpoint(llama)
    plan = whole(checkpoint)
    # Four windows of 24 are 72 tokens to fit on, one is held out; 40 channels need 80.
    with pytest.raises(InvalidInput, match=r"40 columns on 72 tokens; it needs 80, .* 5 samples"):
        corrected(checkpoint, plan, "least-squares", WINDOWS[:4])
    corrected(checkpoint, plan, "least-squares", WINDOWS[:5])


@given(st.integers(1, 300), st.integers(2, 40), st.floats(0, 0.9))
@settings(max_examples=50, deadline=None)
def test_the_number_of_samples_that_is_named_is_the_least(
    columns: int, seqlen: int, held_out: float
) -> None:
    shape = ModelShape(
        vocab_size=9, hidden_size=8, intermediate_size=columns, num_hidden_layers=1,
        num_attention_heads=1, num_key_value_heads=1, head_dim=1, tie_word_embeddings=False,
    )  # fmt: skip
    least = least_samples(shape, seqlen, held_out)
    check_tokens(shape, least, seqlen, held_out)
    for fewer in range(max(2, least - 5), least):
        with pytest.raises(InvalidInput, match=f"at least {least} samples"):
            check_tokens(shape, fewer, seqlen, held_out)


# Closed forms.

problems = st.tuples(st.integers(1, 6), st.integers(2, 8), st.integers(0, 1000))


def divided_columns(columns: int, seed: int) -> tuple[Tensor, Tensor]:
    order = torch.randperm(columns, generator=seeded(seed))
    cut = 1 + seed % (columns - 1)
    return order[:cut].sort().values, order[cut:].sort().values


def by_lstsq(
    x: Tensor, target: Tensor, anchor: Tensor, ridge: float, intercept: bool
) -> tuple[Tensor, Tensor]:
    """Ridge regression towards ``anchor`` as one least-squares problem with more rows."""
    tokens, columns = x.shape
    pull = (tokens * ridge) ** 0.5 * torch.eye(columns, dtype=DOUBLE)
    ones = torch.ones(tokens, 1, dtype=DOUBLE)
    zeros = torch.zeros(columns, 1, dtype=DOUBLE)
    if intercept:
        x, pull = torch.cat([x, ones], 1), torch.cat([pull, zeros], 1)
    rows = torch.cat([x, pull])
    sides = torch.cat([target, (tokens * ridge) ** 0.5 * anchor.T])
    solution = torch.linalg.lstsq(rows, sides, driver="gelsd").solution
    if not intercept:
        return solution.T, torch.zeros(len(anchor), dtype=DOUBLE)
    return solution[:-1].T, solution[-1]


@given(problems, st.sampled_from([1e-3, 1e-2, 1.0]), st.booleans())
@settings(max_examples=60, deadline=None)
def test_least_squares_equals_lstsq_on_the_anchored_problem(
    sizes: tuple[int, int, int], ridge: float, intercept: bool
) -> None:
    outputs, columns, seed = sizes
    x, weight, e = inputs_of(40, columns, seed), draw(outputs, columns, seed=seed), None
    e = draw(40, outputs, seed=seed + 9)
    stay, gone = divided_columns(columns, seed)
    spread = x - x.mean(0) if intercept else x
    strength = ridge * float(spread.square().mean(0).mean())
    problem = LeastSquares(weight, moments_of(x, e, centred=intercept), stay, gone)
    own, drift = problem.solve(ridge)
    for beta in (0.0, 0.5, 1.0):
        change = own.blend(drift, beta)
        target = x @ weight.T + beta * e
        expected, bias = by_lstsq(x[:, stay], target, weight[:, stay], strength, intercept)
        found = weight[:, stay] + change.weight
        scale = 1 + float(expected.abs().max())
        assert float((found - expected).abs().max()) < 1e-6 * scale
        if intercept:
            assert float((change.bias - bias).abs().max()) < 1e-5 * (1 + float(bias.abs().max()))


def test_nothing_pruned_changes_nothing() -> None:
    x, weight = inputs_of(40, 6), draw(4, 6)
    everything, nothing = torch.arange(6), torch.arange(0)
    for intercept in (False, True):
        found = moments_of(x, centred=intercept)
        own, drift = LeastSquares(weight, found, everything, nothing).solve(0.01)
        assert drift is None
        assert not own.weight.any() and not own.bias.any()


def test_bias_makes_the_mean_error_zero() -> None:
    x, weight, e = inputs_of(50, 7), draw(4, 7), draw(50, 4, seed=3)
    stay, gone = divided_columns(7, 3)
    own, drift = bias_correction(weight, moments_of(x, e), stay, gone)
    assert not own.weight.any()
    error = (x @ weight.T + e) - (x[:, stay] @ weight[:, stay].T + own.blend(drift, 1.0).bias)
    assert float(error.mean(0).abs().max()) < 1e-12


def test_a_singular_matrix_is_factored_with_jitter() -> None:
    x = draw(1, 6)
    lower = factor(x.T @ x)
    torch.testing.assert_close(lower @ lower.T, x.T @ x, atol=1e-6, rtol=1e-6)
    assert float(factor(torch.zeros(3, 3, dtype=DOUBLE)).diagonal().min()) > 0


# OBS.


def least_cost(weight: Tensor, regular: Tensor, importance: Tensor, gone: list[int]) -> float:
    """The least of 1/2 tr(D (W - W') H (W - W')^T) over all W' without some columns."""
    if not gone:
        return 0.0
    there = [j for j in range(len(regular)) if j not in gone]
    best = torch.zeros_like(weight)
    if there:
        cross = regular[gone][:, there]
        best[:, there] = weight[:, there] + weight[:, gone] @ cross @ torch.linalg.inv(
            regular[there][:, there]
        )
    change = weight - best
    return 0.5 * float((importance * (change @ regular @ change.T).diagonal()).sum())


@given(st.integers(1, 3), st.integers(2, 5), st.integers(0, 500))
@settings(max_examples=40, deadline=None)
def test_greedy_choice_is_the_argmin_at_each_step(width: int, groups: int, seed: int) -> None:
    columns = width * groups
    weight, importance = draw(4, columns, seed=seed), draw(4, seed=seed).square() + 0.1
    given_second = moments_of(inputs_of(60, columns, seed)).second
    second = given_second.dense()
    regular = second + 1e-2 * second.diagonal().mean() * torch.eye(columns, dtype=DOUBLE)
    elimination = elimination_of(weight, given_second, 1e-2, width, importance)
    gone: list[int] = []
    for _ in range(groups - 1):
        before = least_cost(weight, regular, importance, gone)
        costs = elimination.costs()
        for group in range(groups):
            own = [*range(group * width, (group + 1) * width)]
            if own[0] in gone:
                assert float(costs[group]) == torch.inf
                continue
            expected = least_cost(weight, regular, importance, gone + own) - before
            assert float(costs[group]) == pytest.approx(expected, rel=1e-6, abs=1e-9)
        chosen = int(costs.argmin())
        elimination.remove(chosen)
        gone += range(chosen * width, (chosen + 1) * width)


@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("pending", [1, 4, 64])
def test_running_weights_are_the_least_squares_solution(
    width: int, pending: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(obs, "PENDING_COLUMNS", pending)
    weight = draw(5, 24)
    # Of one the inverse is being used up; the other is solved with.
    found, again = (moments_of(inputs_of(200, 24)) for _ in range(2))
    elimination = elimination_of(weight, found.second, 1e-2, width)
    running, gone = weight.clone(), []
    for _ in range(24 // width - 3):
        group = int(elimination.costs().argmin())
        own = [*range(group * width, (group + 1) * width)]
        running -= running[:, own] @ elimination.remove(group)
        gone += own
        stay = torch.tensor([j for j in range(24) if j not in gone])
        problem = LeastSquares(weight, again, stay, torch.tensor(sorted(gone)))
        expected = weight[:, stay] + problem.solve(1e-2)[0].weight
        assert float((running[:, stay] - expected).abs().max()) < 1e-8
        assert float(running[:, gone].abs().max()) < 1e-9


def test_a_group_goes_as_its_channels_together() -> None:
    weight, x = draw(5, 12), inputs_of(100, 12)
    together, single = (
        elimination_of(weight, moments_of(x).second, 1e-2, width) for width in (3, 1)
    )
    by_group, by_channel = weight.clone(), weight.clone()
    for group in (2, 0):
        own = [*range(group * 3, group * 3 + 3)]
        by_group -= by_group[:, own] @ together.remove(group)
        for channel in own:
            by_channel -= by_channel[:, [channel]] @ single.remove(channel)
    torch.testing.assert_close(by_group, by_channel, atol=1e-9, rtol=1e-9)


def test_waiting_updates_do_not_change_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, x = draw(5, 90), inputs_of(400, 90)
    orders = []
    for pending in (1, 7, 90):
        monkeypatch.setattr(obs, "PENDING_COLUMNS", pending)
        orders.append(remove_greedily(elimination_of(weight, moments_of(x).second, 1e-2, 1), 60))
    assert orders[0] == orders[1] == orders[2]
    assert len(set(orders[0])) == 60


# Held-out windows.


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
    plain = collecting.Collecting.moments

    def recorded(self: collecting.Collecting, centred: bool) -> Moments:
        found = plain(self, centred)
        fitted[-1].append(found.second.dense())
        return found

    monkeypatch.setattr(collecting.Collecting, "moments", recorded)
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


# Blocks.


def test_halves_are_transformers_own_block(family_model: Path) -> None:
    loop = BlockLoop(open_checkpoint(family_model), DOUBLE)
    hidden = loop.embed(WINDOWS)
    for block in loop.blocks():
        halves = Halves.of(block)
        expected = block.run(hidden)
        assert float((halves.run(hidden) - expected).abs().max()) < 1e-12
        hidden = expected


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("sequential", [False, True])
def test_a_model_that_keeps_everything_is_left_as_it_is(
    model: Path, form: Form, sequential: bool
) -> None:
    checkpoint = open_checkpoint(model)
    plan = whole(checkpoint)
    for correction, planned in zip(
        corrected(checkpoint, plan, form, sequential=sequential), plan.blocks, strict=True
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


@pytest.mark.parametrize("form", FORMS[1:])
@pytest.mark.parametrize("sequential", [False, True])
def test_no_block_is_worse_than_uncorrected(model: Path, form: Form, sequential: bool) -> None:
    """Hardly more tokens than columns, and collinear ones: many of them are one window."""
    checkpoint = open_checkpoint(model)
    alike = WINDOWS[:6].clone()
    alike[1:4] = alike[0]
    for windows, seed in ((WINDOWS[:5], 0), (alike, 1), (WINDOWS, 2)):
        plan = narrowed(checkpoint, seed, share=0.4)
        for correction in corrected(checkpoint, plan, form, windows, sequential=sequential):
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


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("sequential", [False, True])
def test_blocks_of_any_width(tmp_path: Path, form: Form, sequential: bool) -> None:
    checkpoint = open_checkpoint(
        tiny_model(tmp_path / "model", "llama-gqa", num_hidden_layers=LAYERS)
    )
    plan = plan_of(checkpoint, mixed_blocks(checkpoint.shape))
    found = corrected(
        checkpoint, plan, form, sequential=sequential, bias="on" if form == "bias" else "auto"
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
        }
        for name, tensor in correction.tensors.items():
            if name.endswith("weight"):
                assert tensor.shape == shapes[name]


@pytest.mark.parametrize("sequential", [False, True])
def test_recorded_errors_are_those_of_plain_transformers(llama: Path, sequential: bool) -> None:
    """The first block's errors on held-out windows, by masking and replacing in the dense model."""
    checkpoint = open_checkpoint(llama)
    plan = narrowed(checkpoint)
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
