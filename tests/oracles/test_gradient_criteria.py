"""Gradient criteria: their formulas, what they are scored from, and what they refuse."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bipline.base.errors import InvalidInput
from bipline.compression.calibrate import calibrate
from bipline.compression.computing import Computing
from bipline.compression.criteria import load_criterion, options_of
from bipline.compression.criteria.hywia import blended, self_attention
from bipline.compression.criteria.interface import Block, BlockScores, Sums
from bipline.compression.criteria.saap import fused
from bipline.compression.score import compute_scores, score_model, score_part
from bipline.compression.statistics import KIND, load_statistics, save_statistics
from bipline.compression.windows import Windows
from bipline.compression.workers import Workers
from bipline.model.opening import open_checkpoint
from bipline.storage.directory import atomic_directory
from tests.scored import EXACT, WINDOWS, assert_same_bits, assert_same_scores, scored

CRITERIA = ("llm-pruner", "hywia", "saap")
IMPORTANCES = ("element-first", "element-second", "element-mixed", "vector")


def test_every_criterion_is_scored_from_statistics_that_were_saved_once(
    llama: Path, tmp_path: Path
) -> None:
    statistics, scores = scored(llama)
    with atomic_directory(tmp_path / "statistics", KIND) as writer:
        save_statistics(statistics, scores, writer)
    saved, _ = load_statistics(tmp_path / "statistics")
    assert_same_bits(statistics, saved)
    all_of_one: list[tuple[str, dict[str, str]]] = [
        ("llm-pruner", {"importance": each}) for each in IMPORTANCES
    ]
    for criterion, options in (*all_of_one, ("hywia", {}), ("saap", {})):
        chosen = options_of(criterion, 0, options)
        again = compute_scores(open_checkpoint(llama), saved, criterion, chosen)
        assert_same_scores(scored(llama, criterion, **options)[1], again)
    with pytest.raises(InvalidInput, match=r"needs the sums .*ffn_activation_squares"):
        compute_scores(open_checkpoint(llama), saved, "llm-bip", options_of("llm-bip"))


def test_importances_of_llm_pruner_are_their_sums(llama: Path) -> None:
    names = ("element_first", "element_second", "element_mixed", "coupled_vectors")
    for importance, name in zip(IMPORTANCES, names, strict=True):
        statistics, scores = scored(llama, importance=importance)
        for sums, found in zip(statistics.blocks, scores.blocks, strict=True):
            assert found.attention_groups.equal(sums[f"attention_{name}"])
            assert found.ffn_channels.equal(sums[f"ffn_{name}"])
    assert scored(llama)[1].options["importance"] == "element-first"
    with pytest.raises(InvalidInput, match="option importance=third"):
        options_of("llm-pruner", 0, {"importance": "third"})


@pytest.mark.parametrize("criterion", CRITERIA)
def test_gradients_are_not_divided(llama: Path, criterion: str) -> None:
    windows, options = Windows(WINDOWS, "", EXACT), options_of(criterion)
    checkpoint = open_checkpoint(llama)
    with pytest.raises(InvalidInput, match="cannot be divided among workers"):
        score_part(checkpoint, windows, criterion, options, (0, 2))
    with pytest.raises(InvalidInput, match="cannot be divided among workers"):
        score_model(checkpoint, windows, criterion, options, None, Workers(0, 2))


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


@pytest.mark.slow
def test_hybrids_differ_from_what_they_are_made_of(reference: Path, data: Path) -> None:
    checkpoint = open_checkpoint(reference)
    text = data / "text" / "novels.calibration.txt"
    drawn = calibrate(checkpoint.folder, [(text, 1.0)], samples=32, seqlen=64, seed=0)
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
