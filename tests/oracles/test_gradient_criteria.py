"""Gradient criteria against plain back-propagation, sums worked by hand, and finite differences."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bipline.base.errors import InvalidInput
from bipline.compression.calibrate import calibrate
from bipline.compression.computing import Computing
from bipline.compression.criteria import load_criterion, options_of
from bipline.compression.criteria.hywia import blended, self_attention
from bipline.compression.criteria.interface import Block, BlockScores, Sums
from bipline.compression.criteria.saap import fused
from bipline.compression.gradient_sums import (
    Coupling,
    couplings,
    gradient_memory,
    gradient_sums,
    grouped,
)
from bipline.compression.score import Calibration, compute_scores, score_model, score_part
from bipline.compression.statistics import (
    KIND,
    Scores,
    Statistics,
    load_statistics,
    save_statistics,
)
from bipline.compression.workers import Workers
from bipline.model.block_loop import BlockLoop
from bipline.model.families import ModelShape
from bipline.model.gradients import block_gradients
from bipline.model.loading import load_model
from bipline.model.opening import open_checkpoint
from bipline.storage.directory import atomic_directory
from tests.tiny import tiny_model, token_windows

# Two chunks, the second of two windows.
WINDOWS = token_windows(windows=18, seqlen=12)
CHUNKS = (slice(0, 16), slice(16, 18))
EXACT = Computing(torch.float64)
CRITERIA = ("llm-pruner", "hywia", "saap")
FORMS = ("element-first", "element-second", "element-mixed", "vector")


def scored(
    model: Path,
    criterion: str = "llm-pruner",
    computing: Computing = EXACT,
    work: Path | None = None,
    windows: Tensor = WINDOWS,
    **options: object,
) -> tuple[Statistics, Scores]:
    chosen = options_of(criterion, 0, options)
    calibration = Calibration(windows, "windows")
    return score_model(open_checkpoint(model), calibration, criterion, chosen, computing, work)


def assert_same_bits(one: Statistics, other: Statistics) -> None:
    for expected, found in zip(one.blocks, other.blocks, strict=True):
        assert expected.keys() == found.keys()
        assert all(expected[name].equal(found[name]) for name in expected)


def assert_same_scores(one: Scores, other: Scores) -> None:
    for expected, found in zip(one.blocks, other.blocks, strict=True):
        assert expected.attention_groups.equal(found.attention_groups)
        assert expected.ffn_channels.equal(found.ffn_channels)


# -- the sums against plain back-propagation ----------------------------------------------------


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


# -- where and how it is computed ---------------------------------------------------------------


@pytest.mark.parametrize(
    "how",
    [{"micro_batch": 4}, {"resident": False}, {"resident": False, "micro_batch": 16}, {}],
)
def test_place_and_micro_batch_change_no_bit(
    llama: Path, tmp_path: Path, how: dict[str, Any]
) -> None:
    expected, scores = scored(llama, computing=Computing())
    found, again = scored(llama, computing=Computing(**how), work=tmp_path)
    assert_same_bits(expected, found)
    assert_same_scores(scores, again)
    assert not list(tmp_path.iterdir())


def test_killed_pass_starts_again_to_the_same_bits(llama: Path, tmp_path: Path) -> None:
    computing = Computing(resident=False)
    killed = gradient_sums(open_checkpoint(llama), WINDOWS, computing, tmp_path)
    next(killed)
    killed.close()
    assert list((tmp_path / "gradients").iterdir())
    found, _ = scored(llama, computing=computing, work=tmp_path)
    assert_same_bits(scored(llama, computing=Computing())[0], found)
    assert not list(tmp_path.iterdir())


def test_inputs_of_blocks_go_to_the_disk_where_the_limit_is_tight(
    llama: Path, tmp_path: Path
) -> None:
    need = gradient_memory(BlockLoop(open_checkpoint(llama), micro_batch=1), WINDOWS)
    # Embedding, two blocks' outputs and one gradient.
    assert need.hidden_states == 4 * WINDOWS.numel() * 32 * 4
    tight = Computing(max_memory=need.least + (need.hidden_states >> 1) + (1 << 30))
    assert len(scored(llama, computing=tight, work=tmp_path)[0].blocks) == 2
    with pytest.raises(InvalidInput, match=r"at least .* of memory are needed"):
        scored(llama, computing=Computing(max_memory=need.least >> 4), work=tmp_path)


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model", "llama-gqa")
    weights = load_file(model / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][3, 3] = float("nan")
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    with pytest.raises(InvalidInput, match="block 1: activations are not finite"):
        scored(model)


@pytest.mark.slow
def test_bfloat16_adds_up_in_float32(reference: Path) -> None:
    windows = torch.randint(4096, (17, 64), generator=torch.Generator().manual_seed(0))
    one, other = (
        scored(reference, computing=Computing(dtype), windows=windows)[0]
        for dtype in (torch.float32, torch.bfloat16)
    )
    for expected, found in zip(one.blocks, other.blocks, strict=True):
        assert all(value.dtype == torch.float64 for value in found.values())
        for name in ("ffn_element_first", "ffn_element_second", "attention_element_first"):
            torch.testing.assert_close(found[name], expected[name], rtol=0.2, atol=0)


# -- the criteria -------------------------------------------------------------------------------


def test_every_criterion_is_scored_from_statistics_that_were_saved_once(
    llama: Path, tmp_path: Path
) -> None:
    statistics, scores = scored(llama)
    with atomic_directory(tmp_path / "statistics", KIND) as writer:
        save_statistics(statistics, scores, writer)
    saved, _ = load_statistics(tmp_path / "statistics")
    assert_same_bits(statistics, saved)
    forms: list[tuple[str, dict[str, str]]] = [("llm-pruner", {"importance": f}) for f in FORMS]
    for criterion, options in (*forms, ("hywia", {}), ("saap", {})):
        chosen = options_of(criterion, 0, options)
        again = compute_scores(open_checkpoint(llama), saved, criterion, chosen)
        assert_same_scores(scored(llama, criterion, **options)[1], again)
    with pytest.raises(InvalidInput, match=r"needs the sums .*ffn_activation_squares"):
        compute_scores(open_checkpoint(llama), saved, "llm-bip", options_of("llm-bip"))


def test_forms_of_llm_pruner_are_their_sums(llama: Path) -> None:
    names = ("element_first", "element_second", "element_mixed", "coupled_vectors")
    for form, name in zip(FORMS, names, strict=True):
        statistics, scores = scored(llama, importance=form)
        for sums, found in zip(statistics.blocks, scores.blocks, strict=True):
            assert found.attention_groups.equal(sums[f"attention_{name}"])
            assert found.ffn_channels.equal(sums[f"ffn_{name}"])
    assert scored(llama)[1].options["importance"] == "element-first"
    with pytest.raises(InvalidInput, match="option importance=third"):
        options_of("llm-pruner", 0, {"importance": "third"})


@pytest.mark.parametrize("criterion", CRITERIA)
def test_gradients_are_not_divided(llama: Path, criterion: str) -> None:
    calibration, options = Calibration(WINDOWS, ""), options_of(criterion)
    checkpoint = open_checkpoint(llama)
    with pytest.raises(InvalidInput, match="cannot be divided among workers"):
        score_part(checkpoint, calibration, criterion, options, EXACT, (0, 2))
    with pytest.raises(InvalidInput, match="cannot be divided among workers"):
        workers = Workers(0, 2)
        score_model(checkpoint, calibration, criterion, options, EXACT, None, workers)


def drawn(groups: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randn(2, groups, generator=generator, dtype=torch.float64).exp()
    return draws[0], draws[1]


def test_hywia_is_its_formula_beyond_one_tile() -> None:
    fine, coarse = drawn(300)
    f, c = fine / fine.mean(), coarse / coarse.mean()
    found = blended(fine, coarse)
    for g in (0, 127, 128, 299):
        weights = torch.tensor(
            [float(f[g] * f[h] + c[g] * c[h]) / 2**0.5 for h in range(300)], dtype=torch.float64
        ).softmax(0)
        alpha = torch.stack([(weights * f).sum(), (weights * c).sum()]).softmax(0)
        assert float(found[g]) == pytest.approx(float(alpha[0] * f[g] + alpha[1] * c[g]))


def test_hywia_does_not_depend_on_the_order_of_groups() -> None:
    fine, coarse = drawn(300)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(blended(fine[order], coarse[order]), blended(fine, coarse)[order])


def test_hywia_of_equal_parents_is_the_parent() -> None:
    fine, _ = drawn(300)
    torch.testing.assert_close(blended(fine, 3 * fine), fine / fine.mean())
    assert blended(torch.zeros(5), torch.zeros(5)).equal(torch.zeros(5))
    assert self_attention(torch.ones(4, 2)).equal(torch.ones(4, 2))


def test_saap_is_its_formula() -> None:
    vector, element = (torch.stack(pair) for pair in (drawn(40), drawn(40, seed=1)))
    sums = {f"{kind}_chunk_{name}": values for kind in ("attention", "ffn") for name, values in
            (("vector", vector), ("element_first", element))}  # fmt: skip
    s_v, s_e = vector.mean(), element.mean()
    each = [vector[t] / (2 * s_v) + element[t] / (2 * s_e) for t in (0, 1)]
    mean = (each[0] + each[1]) / 2
    # The unbiased deviation of two values is |a - b| / sqrt(2).
    expected = mean + 0.7 * (each[0] - each[1]).abs() / 2**0.5
    torch.testing.assert_close(saap(sums, fluctuation=0.7).ffn_channels, expected)
    torch.testing.assert_close(saap(sums, fluctuation=0).attention_groups, mean)
    torch.testing.assert_close(fused(vector, element).mean(0), mean)


def saap(sums: Sums, **options: float) -> BlockScores:
    shape: Any = None
    return load_criterion("saap").score(sums, Block(0, shape, {}), options_of("saap", 0, options))


def test_saap_weights_minimise_the_uncertainty_loss() -> None:
    """The closed form of s^2 in I/(2 s^2) + log s, against its neighbours."""
    values, _ = drawn(50)
    best = values.mean()

    def loss(square: Tensor) -> float:
        return float((values / (2 * square) + square.log() / 2).sum())

    assert loss(best) < min(loss(best * 0.99), loss(best * 1.01))


def test_saap_of_one_chunk_is_refused(llama: Path) -> None:
    with pytest.raises(InvalidInput, match=r"16 calibration windows are too few.* at least 17"):
        scored(llama, "saap", windows=WINDOWS[:16])
    statistics, _ = scored(llama, windows=WINDOWS[:16])
    checkpoint = open_checkpoint(llama)
    with pytest.raises(InvalidInput, match=r"one chunk of 16.* at least 17 windows"):
        compute_scores(checkpoint, statistics, "saap", options_of("saap"))
    still = options_of("saap", 0, {"fluctuation": 0})
    compute_scores(checkpoint, statistics, "saap", still)
    assert len(scored(llama, "saap", windows=WINDOWS[:17])[1].blocks) == 2
    with pytest.raises(InvalidInput, match="option fluctuation=-1"):
        options_of("saap", 0, {"fluctuation": "-1"})


def rank_correlation(one: Tensor, other: Tensor) -> float:
    ranks = torch.stack([values.argsort().argsort().double() for values in (one, other)])
    return float(torch.corrcoef(ranks)[0, 1])


def test_hybrids_differ_from_what_they_are_made_of(reference: Path, data: Path) -> None:
    checkpoint = open_checkpoint(reference)
    text = data / "text" / "novels.calibration.txt"
    drawn = calibrate(checkpoint.folder, {text: 1.0}, samples=32, seqlen=64, seed=0)
    statistics, _ = scored(reference, computing=Computing(), windows=drawn.token_ids)

    def pooled(criterion: str) -> Tensor:
        scores = compute_scores(checkpoint, statistics, criterion, options_of(criterion))
        return torch.cat([block.ffn_channels for block in scores.blocks])

    def parent(read: Callable[[Sums], Tensor]) -> Tensor:
        return torch.cat([read(sums) for sums in statistics.blocks])

    names = ("vector", "coupled_vectors", "element_first", "element_mixed")
    parents = {n: parent(lambda sums, n=n: sums[f"ffn_{n}"]) for n in names}  # type: ignore[misc]
    for criterion in ("hywia", "saap"):
        for name, scores in parents.items():
            assert rank_correlation(pooled(criterion), scores) < 0.99, (criterion, name)
