"""Gradient sums against plain back-propagation, sums worked by hand, and finite differences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bipline.compression.criteria.interface import Block
from bipline.compression.gradient_sums import (
    Coupling,
    couplings,
    grouped,
)
from bipline.model.block_loop import BlockLoop
from bipline.model.families import ModelShape
from bipline.model.gradients import block_gradients
from bipline.model.loading import load_model
from bipline.model.opening import open_checkpoint
from tests.scored import CHUNKS, WINDOWS, scored


def loss_of(model: Any, windows: Tensor) -> Tensor:
    logits = model(windows).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())


def window_gradients(model: Any) -> list[dict[str, Tensor]]:
    """Gradients of each window's own mean loss, by the whole model's parameter names.

    transformers' norms round to float32, so the loss is scaled before it goes back as it is in
    the pass over all windows: 1/18 more or less would show in the seventh digit.
    """
    names, parameters = zip(*model.named_parameters(), strict=True)
    windows = len(WINDOWS)
    found = []
    for window in WINDOWS.split(1):
        shares = torch.autograd.grad(loss_of(model, window) / windows, parameters)
        found.append({name: windows * g for name, g in zip(names, shares, strict=True)})
    return found


def mean_of(gradients: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([g[name] for g in gradients]).mean(0) for name in gradients[0]}


def members(shape: ModelShape, index: int, kind: str, group: int) -> dict[str, tuple[int, slice]]:
    """The lines of every tensor that belong to a group, as ``(dimension, lines)``."""
    prefix = f"model.layers.{index}."
    if kind == "ffn":
        channel = slice(group, group + 1)
        inputs = {f"mlp.{name}_proj": channel for name in ("gate", "up")}
        output = {"mlp.down_proj.weight": (1, channel)}
    else:
        size, queries = shape.head_dim, shape.num_attention_heads // shape.num_key_value_heads
        own = slice(group * size, (group + 1) * size)
        heads = slice(group * queries * size, (group + 1) * queries * size)
        inputs = {"self_attn.q_proj": heads, "self_attn.k_proj": own, "self_attn.v_proj": own}
        output = {"self_attn.o_proj.weight": (1, heads)}
    rows = {f"{name}.{part}": (0, own) for name, own in inputs.items() for part in
            ("weight", "bias")}  # fmt: skip
    return {prefix + name: place for name, place in {**rows, **output}.items()}


def direct_sums(
    weights: dict[str, Tensor], g: dict[str, Tensor], squares: dict[str, Tensor], places: Any
) -> dict[str, float]:
    """One group's sums, line by line."""
    found = dict.fromkeys(
        ("element_first", "element_second", "element_mixed", "coupled_vectors", "vector"), 0.0
    )
    for name, (dim, lines) in places.items():
        if name not in weights:
            continue
        for line in range(lines.start, lines.stop):
            w, first, f = (values[name].select(dim, line) for values in (weights, g, squares))
            found["element_first"] += float((w * first).abs().sum())
            found["element_second"] += float((w * w * f).abs().sum())
            found["element_mixed"] += float((w * first - 0.5 * w * w * f).abs().sum())
            found["coupled_vectors"] += abs(float((w * first).sum()))
            found["vector"] += float((w * first).sum())
    return {**found, "vector": abs(found["vector"])}


def test_sums_are_those_of_full_back_propagation(family_model: Path) -> None:
    model = load_model(family_model, torch.float64)
    shape = open_checkpoint(family_model).shape
    weights = {name: p.detach() for name, p in model.named_parameters()}
    each = window_gradients(model)
    mean = mean_of(each)
    squares = mean_of([{name: g.square() for name, g in one.items()} for one in each])
    chunks = [mean_of(each[part]) for part in CHUNKS]
    sizes = {"attention": shape.num_key_value_heads, "ffn": shape.intermediate_size}
    statistics, _ = scored(family_model)
    for index, sums in enumerate(statistics.blocks):
        assert len(sums) == 14
        assert all(value.dtype == torch.float64 for value in sums.values())
        for kind, groups in sizes.items():
            for group in range(groups):
                places = members(shape, index, kind, group)
                expected = direct_sums(weights, mean, squares, places)
                for name, value in expected.items():
                    found = float(sums[f"{kind}_{name}"][group])
                    assert found == pytest.approx(value, rel=1e-7, abs=1e-13), (kind, name)
                for number, chunk in enumerate(chunks):
                    expected = direct_sums(weights, chunk, squares, places)
                    for name in ("element_first", "vector"):
                        found = float(sums[f"{kind}_chunk_{name}"][number, group])
                        assert found == pytest.approx(expected[name], rel=1e-7, abs=1e-13)


def test_group_sums_worked_by_hand() -> None:
    """hidden 2, head_dim 1, four query heads on two KV heads, two FFN channels."""
    coupled = {
        "q": Coupling("attention", 0, 2),
        "k": Coupling("attention", 0, 1),
        "v": Coupling("attention", 0, 1),
        "o": Coupling("attention", 1, 2),
        "gate": Coupling("ffn", 0, 1),
        "up": Coupling("ffn", 0, 1),
        "down": Coupling("ffn", 1, 1),
    }
    weights, gradients, squares = (
        {name: torch.tensor(rows, dtype=torch.float64) for name, rows in values.items()}
        for values in (
            {
                "q": [[1, 0], [-2, 0], [0, 0], [0, 0]], "k": [[2, 0], [1, 1]],
                "v": [[-1, 2], [0, 0]], "o": [[1, 3, 0, 0], [0, 0, 0, 0]],
                "gate": [[1, -1], [0, 1]], "up": [[2, 0], [0, 0]], "down": [[1, 0], [1, -2]],
            },
            {
                "q": [[3, 9], [1, 9], [9, 9], [9, 9]], "k": [[-1, 9], [1, -1]],
                "v": [[-4, -1], [9, 9]], "o": [[1, 1, 9, 9], [9, 9, 9, 9]],
                "gate": [[2, 3], [1, 1]], "up": [[1, 5], [9, 9]], "down": [[4, 7], [-1, 1]],
            },
            {
                "q": [[2, 9], [1, 9], [9, 9], [9, 9]], "k": [[1, 9], [1, 1]],
                "v": [[2, 0.5], [9, 9]], "o": [[4, 0, 9, 9], [9, 9, 9, 9]],
                "gate": [[2, 2], [9, 1]], "up": [[1, 1], [9, 9]], "down": [[2, 1], [0, 1]],
            },
        )
    )  # fmt: skip
    sums = grouped(weights, gradients, coupled, squares)
    # Group 0, w g:   q 3 | -2,  k -2,  v 4 -2,  o 1 | 3      (| between lines)
    #          w^2 F: q 2 | 4,   k 4,   v 2 2,   o 4 | 0
    # Group 1, w g:   k 1 -1;    w^2 F: k 1 1
    # first 3+2+2+4+2+1+3 = 17; second 2+4+4+2+2+4+0 = 18;
    # mixed |3-1|+|-2-2|+|-2-2|+|4-1|+|-2-1|+|1-2|+|3-0| = 20 and |1-1/2|+|-1-1/2| = 2;
    # lines 3+2+2+|4-2|+1+3 = 13 and |1-1| = 0; the whole |3-2-2+4-2+1+3| = 5 and 0.
    assert sums["attention_element_first"].tolist() == [17, 2]
    assert sums["attention_element_second"].tolist() == [18, 2]
    assert sums["attention_element_mixed"].tolist() == [20, 2]
    assert sums["attention_coupled_vectors"].tolist() == [13, 0]
    assert sums["attention_vector"].tolist() == [5, 0]
    # Channel 0, w g:   gate 2 -3, up 2 0, down 4 -1;  w^2 F: gate 2 2, up 4 0, down 2 0
    # Channel 1, w g:   gate 0 1, down 0 -2;           w^2 F: gate 0 1, down 0 4
    # first 2+3+2+4+1 = 12 and 1+2 = 3; second 2+2+4+2 = 10 and 1+4 = 5;
    # mixed |2-1|+|-3-1|+|2-2|+|4-1|+|-1-0| = 9 and |1-1/2|+|-2-2| = 4.5;
    # lines |2-3|+2+|4-1| = 6 and 1+2 = 3; the whole |-1+2+3| = 4 and |1-2| = 1.
    assert sums["ffn_element_first"].tolist() == [12, 3]
    assert sums["ffn_element_second"].tolist() == [10, 5]
    assert sums["ffn_element_mixed"].tolist() == [9, 4.5]
    assert sums["ffn_coupled_vectors"].tolist() == [6, 3]
    assert sums["ffn_vector"].tolist() == [4, 1]


def gradients_of_block(model: Path, index: int) -> tuple[Block, dict[str, Tensor]]:
    checkpoint = open_checkpoint(model)
    for found in block_gradients(BlockLoop(checkpoint, torch.float64), WINDOWS):
        if found.block.index == index:
            return Block.of(checkpoint, index, found.block.weights), found.gradients
    raise AssertionError(index)


def slope_of_gate(model: Any, parameter: Tensor, columns: slice, step: float = 0.02) -> float:
    """d loss / d s at s = 1, where the columns of a projection are multiplied by s.

    Of fourth order, with a wide step, because transformers' norms round to float32.
    """
    kept, losses = parameter.detach().clone(), {}
    with torch.no_grad():
        for steps in (-2, -1, 1, 2):
            parameter[:, columns] = kept[:, columns] * (1 + steps * step)
            losses[steps] = float(loss_of(model, WINDOWS))
        parameter.copy_(kept)
    return (8 * (losses[1] - losses[-1]) - (losses[2] - losses[-2])) / (12 * step)


def test_vector_over_o_proj_is_the_slope_of_the_loss_along_a_gate(family_model: Path) -> None:
    block, gradients = gradients_of_block(family_model, 0)
    coupled = couplings(open_checkpoint(family_model), 0)
    model = load_model(family_model, torch.float64)
    for name, kind in (("self_attn.o_proj.weight", "attention"), ("mlp.down_proj.weight", "ffn")):
        found = grouped(block.weights, gradients, {name: coupled[name]})[f"{kind}_vector"]
        width = coupled[name].width
        for group in range(min(4, len(found))):
            columns = slice(group * width, (group + 1) * width)
            slope = slope_of_gate(model, model.get_parameter(f"model.layers.0.{name}"), columns)
            assert float(found[group]) == pytest.approx(abs(slope), rel=1e-4, abs=2e-6)


@pytest.mark.parametrize(
    ("outputs", "inputs"),
    [("self_attn.o_proj.weight", "self_attn.v_proj"), ("mlp.down_proj.weight", "mlp.up_proj")],
)
def test_what_multiplies_linearly_has_equal_vector_parts(
    family_model: Path, outputs: str, inputs: str
) -> None:
    """Rows times s and columns by s leave the model alone, so both slopes are the same."""
    block, gradients = gradients_of_block(family_model, 1)
    coupled = couplings(open_checkpoint(family_model), 1)
    sides = [{outputs: coupled[outputs]}, {n: c for n, c in coupled.items() if inputs in n}]
    (one, other) = (grouped(block.weights, gradients, side) for side in sides)
    for name in one:
        if name.endswith("_vector"):
            torch.testing.assert_close(one[name], other[name], rtol=1e-8, atol=1e-12)


def test_norms_and_output_biases_belong_to_no_group(family_model: Path) -> None:
    checkpoint = open_checkpoint(family_model)
    coupled = couplings(checkpoint, 0)
    for name in checkpoint.block_names(0):
        alone = "norm" in name or name in ("self_attn.o_proj.bias", "mlp.down_proj.bias")
        assert (name in coupled) is not alone
