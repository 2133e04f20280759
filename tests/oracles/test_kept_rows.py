"""Kept rows: v_proj and up_proj fitted by conjugate gradients, held to dense least squares."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bipline.compression.compensation import block_fit, closed_forms, triangles
from bipline.compression.compensation.collecting import token_weights
from bipline.compression.compensation.conjugate_gradients import conjugate_gradients
from bipline.compression.compensation.kept_rows import READER_OF, Batches, fitted_rows
from bipline.compression.compensation.memory import rows_bytes
from bipline.compression.compensation.streams import Batch
from bipline.compression.compensation.versions import PrunedBlock
from bipline.model.block_loop import BlockLoop
from bipline.model.checkpoint import Checkpoint
from bipline.model.halves import DOWN_PROJ, GATE_PROJ, O_PROJ, UP_PROJ, V_PROJ, Halves
from bipline.model.opening import open_checkpoint
from bipline.values.compensation import Compensation
from tests.compensated import REPEATED
from tests.corrections import corrected, narrowed
from tests.oracles.test_compensation_memory import most_bytes
from tests.tiny import tiny_model

FAMILIES = ("llama-gqa", "llama-gqa-biased", "qwen2-gqa", "qwen3-mqa", "mistral-mha")
RIDGE = 0.02
ROWS = (V_PROJ, UP_PROJ, GATE_PROJ)
# Whose rows are fitted where nothing is said.
ROWS_OF = {O_PROJ: V_PROJ, DOWN_PROJ: UP_PROJ}


@pytest.fixture(scope="module", params=FAMILIES)
def checkpoint(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Checkpoint:
    return open_checkpoint(tiny_model(tmp_path_factory.mktemp("model") / "tiny", request.param))


@settings(deadline=None)
@given(size=st.integers(1, 12), seed=st.integers(0, 1000))
def test_as_many_steps_as_there_are_unknowns_solve(size: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    root, right = (torch.randn(rows, size, generator=generator).double() for rows in (size + 2, 1))
    matrix = root.T @ root + 0.1 * torch.eye(size)
    scales = matrix.diagonal()
    for precondition in (lambda residual: residual / scales, lambda residual: residual):
        found = conjugate_gradients(right, lambda x: x @ matrix, precondition, 4 * size)
        torch.testing.assert_close(found @ matrix, right, rtol=1e-6, atol=1e-6)


@settings(deadline=None)
@given(size=st.integers(2, 12), seed=st.integers(0, 1000), steps=st.integers(0, 24))
def test_steps_stop_where_the_error_elsewhere_no_longer_falls(
    size: int, seed: int, steps: int
) -> None:
    """What comes is the last of the steps before the first that does not lower it."""
    generator = torch.Generator().manual_seed(seed)
    root, right, other = (
        torch.randn(rows, size, generator=generator).double() for rows in (size + 2, 1, 1)
    )
    matrix = root.T @ root + 0.1 * torch.eye(size)

    def solved(count: int, **more: Any) -> Tensor:
        return conjugate_gradients(right, lambda x: x @ matrix, lambda x: x, count, **more)

    def error(x: Tensor) -> float:
        return float((x - other).square().sum())

    best = 0
    while best < steps and error(solved(best + 1)) < error(solved(best)):
        best += 1
    torch.testing.assert_close(solved(steps, error=error), solved(best))


def test_nothing_to_fit_is_nothing() -> None:
    right = torch.zeros(2, 3)
    assert not conjugate_gradients(right, lambda x: 2 * x, lambda x: x, 3).any()


def half_of(checkpoint: Checkpoint) -> tuple[Halves, Batches]:
    """A block of which some groups are gone, and tokens: what enters, what should leave it.

    Of a single group some query heads.
    """
    block = BlockLoop(checkpoint, torch.float64).block(1)
    plan = narrowed(checkpoint).blocks[1]
    if checkpoint.shape.num_key_value_heads == 1:
        plan = plan.model_copy(update={"query_heads": ((0, 2, 3),)})
    pruned = PrunedBlock(checkpoint, block, plan).halves({})
    generator = torch.Generator().manual_seed(3)
    entering = torch.randn(6, 7, checkpoint.shape.hidden_size, generator=generator).double()
    target = entering + torch.randn(entering.shape, generator=generator).double()

    def batches(first: int = 0) -> Iterator[Batch]:
        parts = zip(entering.split(4), target.split(4), strict=True)
        yield from [Batch(reads, reads, wanted) for reads, wanted in parts][first:]

    return pruned, batches


def derivative(halves: Halves, name: str, entering: Tensor) -> Tensor:
    """Of what a half gives in every weight of a matrix, ``[tokens, hidden_size, weights]``."""
    columns, own = READER_OF[name], halves.weights[f"{name}.weight"]

    def given_by(rows: Tensor) -> Tensor:
        changed = halves.changed({**halves.weights, f"{name}.weight": rows})
        inputs = changed.matrix_inputs(columns, entering)
        return changed.project(columns, inputs).flatten(0, 1)

    steps = 1e-4 * torch.eye(own.numel()).double().view(-1, *own.shape)
    differences = [given_by(own + step) - given_by(own - step) for step in steps]
    return torch.stack(differences, -1) / 2e-4


@pytest.mark.parametrize("rows", ROWS)
def test_rows_are_the_weighted_ridge_solution(checkpoint: Checkpoint, rows: str) -> None:
    halves, batches = half_of(checkpoint)
    columns = READER_OF[rows]
    entering, _, target = (torch.cat(parts) for parts in zip(*batches(), strict=True))
    jacobian = derivative(halves, rows, entering)
    roots = token_weights(target.flatten(0, 1), halves.rms_norm_eps).sqrt()[:, None]
    left = target - entering - halves.project(columns, halves.matrix_inputs(columns, entering))
    matrix = (roots[..., None] * jacobian).flatten(0, 1)
    squares = matrix.T @ matrix
    sides = matrix.T @ (roots * left.flatten(0, 1)).flatten()
    found = fitted_rows(halves, rows, batches, RIDGE, 300)
    # lambda is a share of the diagonal's mean, exactly so for up_proj's rows only on average over
    # tokens: it is recovered from the solution, and must be the same in every direction.
    rest = sides - squares @ found.flatten()
    lifted = float(rest @ found.flatten() / found.square().sum())
    assert lifted > 0
    torch.testing.assert_close(
        rest, lifted * found.flatten(), rtol=1e-5, atol=1e-7 * float(rest.norm())
    )
    mean = float(squares.diagonal().mean())
    assert RIDGE / 3 < lifted / mean < 3 * RIDGE


def left_after(halves: Halves, rows: str, batches: Batches, change: Tensor) -> float:
    name, columns = f"{rows}.weight", READER_OF[rows]
    changed = halves.changed({**halves.weights, name: halves.weights[name] + change})
    total = 0.0
    for entering, _, target in batches():
        weights = token_weights(target.flatten(0, 1), halves.rms_norm_eps)
        given = changed.project(columns, changed.matrix_inputs(columns, entering))
        total += float(
            (weights[:, None] * (target - entering - given).flatten(0, 1).square()).sum()
        )
    return total


@pytest.mark.parametrize("rows", [V_PROJ, UP_PROJ])
def test_every_step_leaves_less(checkpoint: Checkpoint, rows: str) -> None:
    halves, batches = half_of(checkpoint)
    found = [fitted_rows(halves, rows, batches, 1e-6, steps) for steps in (0, 1, 2, 4)]
    left = [left_after(halves, rows, batches, change) for change in found]
    assert not found[0].any()
    assert left[0] > left[1] > left[2] > left[3]


@pytest.mark.parametrize("rows", ROWS)
def test_held_out_squares_decide_how_many_steps(checkpoint: Checkpoint, rows: str) -> None:
    halves, batches = half_of(checkpoint)

    def apart(first: int = 0) -> Iterator[Batch]:
        yield from list(reversed_targets(batches))[first:]

    errors = [
        left_after(halves, rows, apart, fitted_rows(halves, rows, batches, 1e-6, steps))
        for steps in range(6)
    ]
    falling = next((n for n in range(5) if errors[n + 1] >= errors[n]), 5)
    chosen = fitted_rows(halves, rows, batches, 1e-6, 5, held_out=apart)
    assert left_after(halves, rows, apart, chosen) == pytest.approx(errors[falling], rel=1e-9)
    if rows != GATE_PROJ:
        as_fitted = fitted_rows(halves, rows, batches, 1e-6, 5, held_out=batches)
        torch.testing.assert_close(as_fitted, fitted_rows(halves, rows, batches, 1e-6, 5))


def reversed_targets(batches: Batches) -> Iterator[Batch]:
    """The same inputs with half of what was to leave the block, and half of another token's."""
    for entering, _, target in batches():
        yield Batch(entering, entering, (target + target.flip(1)) / 2)


def test_a_fit_takes_what_is_predicted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TILE_COLUMNS", "STRIP_COLUMNS"):
        monkeypatch.setattr(triangles, name, 32)
    monkeypatch.setattr(closed_forms, "ROWS_TOGETHER", 32)
    rows, columns = 768, 128
    sizes = {"hidden_size": columns, "intermediate_size": rows}
    checkpoint = open_checkpoint(tiny_model(tmp_path / "model", "llama-gqa", **sizes))
    halves = Halves.of(BlockLoop(checkpoint).block(0))
    entering = torch.randn(1, 4, columns)

    def batches(first: int = 0) -> Iterator[Batch]:
        yield from [Batch(entering, entering, 2 * entering)][first:]

    found = most_bytes(lambda: fitted_rows(halves, UP_PROJ, batches, RIDGE, 3))
    predicted = rows_bytes(rows, columns, 4)
    assert found <= predicted <= 1.5 * found


def fitted_matrices(blocks: list[Any]) -> set[str]:
    """The matrices whose rows the records say were fitted, as ``block name``."""
    found = set()
    for block in blocks:
        for sublayer, name in ((block.record.attention, O_PROJ), (block.record.ffn, DOWN_PROJ)):
            if sublayer and sublayer.rows_fitted:
                found.add(f"{block.record.index} {ROWS_OF[name]}.weight")
    return found


def test_fitted_rows_are_among_the_corrections_and_as_many_as_the_plan_keeps(
    checkpoint: Checkpoint,
) -> None:
    options = {"input_maps": False, "activated_rows": False}
    blocks = corrected(checkpoint, narrowed(checkpoint), "obs", **options)
    fitted = fitted_matrices(blocks)
    assert fitted
    held = {f"{block.record.index} {name}" for block in blocks for name in block.tensors}
    names = {f"{name}.weight" for name in ROWS_OF.values()}
    assert {each for each in held if each.partition(" ")[2] in names} == fitted
    for block in blocks:
        widths = dict(zip(("v", "up"), block.plan.widths, strict=True))
        widths["v"] *= checkpoint.shape.head_dim
        for name, tensor in block.tensors.items():
            for kind, count in widths.items():
                if f".{kind}_proj.weight" in name:
                    assert tensor.shape == (count, checkpoint.shape.hidden_size)


def test_held_out_errors_fall(checkpoint: Checkpoint) -> None:
    with_rows, without = (
        sum(
            block.record.error
            for block in corrected(
                checkpoint, narrowed(checkpoint), "obs", REPEATED.token_ids, **each
            )
        )
        for each in ({}, {"row_steps": 0})
    )
    assert with_rows < without


@pytest.mark.parametrize("family", ["llama-gqa-biased", "starcoder2"])
def test_rows_that_an_activation_reads_are_fitted_too(family: str, tmp_path: Path) -> None:
    """Those of gate_proj, or of an up_proj without a gate; errors on held-out windows fall."""
    checkpoint = open_checkpoint(tiny_model(tmp_path / "model", family))
    with_rows, without = (
        corrected(checkpoint, narrowed(checkpoint), "obs", REPEATED.token_ids, activated_rows=each)
        for each in (True, False)
    )
    read = {"llama-gqa-biased": GATE_PROJ, "starcoder2": UP_PROJ}[family]
    assert any(f"{read}.weight" in block.tensors for block in with_rows)
    assert not any(f"{read}.weight" in block.tensors for block in without)
    assert sum(b.record.error for b in with_rows) < sum(b.record.error for b in without)


def test_a_sweep_that_changes_nothing_is_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that are moved far lower no error, in this sweep or in any other."""
    checkpoint = open_checkpoint(tiny_model(tmp_path / "model", "llama-gqa"))
    asked: list[str] = []

    def far(pruned: Halves, rows: str, *_more: Any) -> Tensor:
        asked.append(rows)
        return torch.full_like(pruned.weights[f"{rows}.weight"], 1e3)

    monkeypatch.setattr(block_fit, "fitted_rows", far)
    blocks = corrected(checkpoint, narrowed(checkpoint), "obs", row_sweeps=5)
    assert not fitted_matrices(blocks)
    fits = {block.record.index for block in blocks if block.record.ffn.form == "obs"}
    assert fits and [each for each in asked if each != V_PROJ] == [UP_PROJ, GATE_PROJ] * len(fits)


@pytest.mark.parametrize(
    ("compensation", "options"),
    [("obs", {"row_steps": 0}), ("least-squares", {"sequential": False}), ("bias", {})],
)
def test_there_are_none_unless_asked(
    checkpoint: Checkpoint, compensation: Compensation, options: dict[str, Any]
) -> None:
    assert not fitted_matrices(corrected(checkpoint, narrowed(checkpoint), compensation, **options))


def test_attention_weights_mix_values_as_attention_does(checkpoint: Checkpoint) -> None:
    halves, batches = half_of(checkpoint)
    entering, *_ = next(batches())
    normed = halves.attention_input(entering)
    held = {name: halves.weights.get(f"{V_PROJ}.{name}") for name in ("weight", "bias")}
    values = torch.nn.functional.linear(normed, held["weight"], held["bias"])
    weights = halves.attention_weights(normed)
    shared = weights.shape[1] * halves.head_dim // values.shape[2]
    each = values.unflatten(2, (-1, halves.head_dim)).transpose(1, 2)
    mixed = weights @ each.repeat_interleave(shared, 1)
    torch.testing.assert_close(mixed.transpose(1, 2).flatten(2), halves.attention_output(entering))


@pytest.mark.parametrize("rows", ROWS)
def test_rows_do_not_depend_on_what_is_held(checkpoint: Checkpoint, rows: str) -> None:
    halves, batches = half_of(checkpoint)
    columns = READER_OF[rows]
    asked: list[int] = []

    def counted(first: int = 0) -> Iterator[Batch]:
        asked.append(first)
        return batches(first)

    heads = halves.weights[f"{O_PROJ}.weight"].shape[1] // halves.head_dim
    channels = halves.weights[f"{DOWN_PROJ}.weight"].shape[1]
    # Four windows of seven tokens: what their rows read, and gates or attention weights.
    one = 8 * 4 * 7 * (checkpoint.shape.hidden_size + (7 * heads, channels)[columns == DOWN_PROJ])
    found = [fitted_rows(halves, rows, counted, RIDGE, 2, room) for room in (0, one, math.inf)]
    assert asked == [0, 0, 0, 0, 1, 1, 0, 2, 2]
    assert found[0].equal(found[1])
    assert found[0].equal(found[2])
