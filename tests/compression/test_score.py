"""Scoring divided: among processes, among steps, over a kill. The sums must be the same bits."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bipline.base.errors import InvalidInput
from bipline.compression.allocate import allocate
from bipline.compression.computing import Computing
from bipline.compression.criteria.interface import Options
from bipline.compression.partial_sums import share_of
from bipline.compression.score import (
    compute_scores,
    reduce_parts,
    score_model,
    score_part,
)
from bipline.compression.score_progress import ScoreProgress
from bipline.compression.statistics import KIND, Scores, Statistics, save_statistics
from bipline.compression.windows import Windows
from bipline.model.families import families
from bipline.model.opening import open_checkpoint
from bipline.settings.line import AllocateSettings
from bipline.storage.digests import digest_file
from bipline.storage.directory import atomic_directory
from bipline.storage.manifest import read_manifest
from tests.command import contents
from tests.compression.test_calibrate import prose
from tests.scored import assert_same_bits, assert_same_scores
from tests.tiny import CASES, tiny_model, token_windows

WINDOWS = Windows(token_windows(windows=70, seqlen=12), "windows", Computing())
CRITERION = "llm-bip-glu"


def scored(
    model: Path, work: Path | None = None, criterion: str = CRITERION, **how: object
) -> tuple[Statistics, Scores]:
    windows = replace(WINDOWS, computing=Computing(**how))  # type: ignore[arg-type]
    return score_model(open_checkpoint(model), windows, criterion, Options(), work)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_parts_reduce_to_the_whole(family_model: Path, count: int) -> None:
    whole, _ = scored(family_model)
    parts = [
        score_part(
            open_checkpoint(family_model),
            WINDOWS,
            CRITERION,
            Options(),
            (index, count),
        )
        for index in range(count)
    ]
    assert_same_bits(whole, reduce_parts(parts))


def test_parts_of_different_models_are_refused(llama: Path, tmp_path: Path) -> None:
    other = tiny_model(tmp_path / "other", "llama-gqa", seed=1)
    parts = [
        score_part(open_checkpoint(model), WINDOWS, CRITERION, Options(), (0, 1))
        for model in (llama, other)
    ]
    with pytest.raises(InvalidInput, match="differ in their tensor_digest"):
        reduce_parts(parts)


def test_shares_cover_every_chunk_once() -> None:
    for windows in (1, 16, 17, 70, 640):
        chunks = -(-windows // 16)
        for count in range(1, chunks + 1):
            shares = [share_of(windows, index, count) for index in range(count)]
            assert [n for share in shares for n in share] == list(range(chunks))
            assert max(map(len, shares)) - min(map(len, shares)) <= 1
        with pytest.raises(InvalidInput, match=f"too few for {chunks + 1} workers"):
            share_of(windows, 0, chunks + 1)


def test_one_pass_gives_the_scores_of_the_sums(family_model: Path) -> None:
    statistics, scores = scored(family_model)
    again = compute_scores(open_checkpoint(family_model), statistics, CRITERION, Options())
    assert_same_scores(scores, again)


def test_scores_do_not_see_the_rounding_of_the_computing_dtype(llama: Path) -> None:
    """A float64 model computed in bfloat16 is scored with its own weights, from rounded sums."""
    statistics, scores = scored(llama, dtype=torch.bfloat16)
    again = compute_scores(open_checkpoint(llama), statistics, CRITERION, Options())
    for one, other in zip(scores.blocks, again.blocks, strict=True):
        assert one.ffn_channels.equal(other.ffn_channels)


def test_a_damaged_newest_record_costs_one_block(llama: Path, tmp_path: Path) -> None:
    whole, _ = scored(llama)
    scored(llama, tmp_path)
    states = tmp_path / "states-0002.bin"
    states.write_bytes(bytes(states.stat().st_size))
    resumed, _ = scored(llama, tmp_path)
    assert_same_bits(whole, resumed)
    assert states.read_bytes() != bytes(states.stat().st_size)


# One family of every build.
BUILDS = {families()[model_type].build: case for case, (model_type, _) in reversed(CASES.items())}


@pytest.mark.slow
@pytest.mark.parametrize("case", BUILDS.values(), ids=BUILDS.keys())
def test_every_kind_goes_on_after_the_block_that_it_was_killed_behind(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(tmp_path / "model", case, dtype=torch.float32)
    criterion = "llm-bip" if open_checkpoint(model).shape.num_experts else CRITERION
    whole, _ = scored(model, criterion=criterion)
    (tmp_path / "work").mkdir()
    saved, taken = ScoreProgress.save, list[int]()

    def dying(self: ScoreProgress, *given: object) -> None:
        saved(self, *given)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    def counting(self: ScoreProgress, *given: object) -> None:
        taken.append(1)
        saved(self, *given)  # type: ignore[arg-type]

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ScoreProgress, "save", dying)
        scored(model, tmp_path / "work", criterion)
    monkeypatch.setattr(ScoreProgress, "save", counting)
    resumed, _ = scored(model, tmp_path / "work", criterion)
    assert_same_bits(whole, resumed)
    assert len(taken) == open_checkpoint(model).shape.num_hidden_layers - 1


def test_damaged_sums_are_taken_again(llama: Path, tmp_path: Path) -> None:
    whole, _ = scored(llama)
    scored(llama, tmp_path)
    (tmp_path / "block-0000.safetensors").write_bytes(b"junk")
    resumed, _ = scored(llama, tmp_path)
    assert_same_bits(whole, resumed)


def test_states_without_memory_give_the_same_sums(llama: Path, tmp_path: Path) -> None:
    whole, _ = scored(llama)
    spilled, _ = scored(llama, tmp_path, resident=False)
    assert_same_bits(whole, spilled)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(prose(1) * 3)
    return path


LAUNCHER = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def prune(
    text: Path, out: Path, model: Path, *before: str, samples: int = 70
) -> subprocess.CompletedProcess[str]:
    """``bipline prune`` in processes of its own, with all it can tell."""
    arguments = [
        "-m", "bipline", "prune", model, "--ratio", "0.3", "--calibration", text,
        "--samples", samples, "--seqlen", "16", "--out", out, "--state", text.parent / "state",
        "--criterion", CRITERION,
        "--json", out.with_suffix(".json"), "--statistics", out.with_suffix(".statistics"),
    ]  # fmt: skip
    command = [sys.executable, *before, *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.mark.slow
def test_two_processes_make_the_plan_of_one(llama: Path, text: Path, tmp_path: Path) -> None:
    alone = prune(text, tmp_path / "alone", llama)
    assert alone.returncode == 0, alone.stderr
    together = prune(text, tmp_path / "together", llama, *LAUNCHER)
    assert together.returncode == 0, together.stderr
    assert contents(tmp_path / "alone") == contents(tmp_path / "together")
    for name in ("sums.safetensors", "scores.safetensors"):
        one, other = (tmp_path / f"{run}.statistics" / name for run in ("alone", "together"))
        assert one.read_bytes() == other.read_bytes()
    left = {path.name for path in tmp_path.iterdir()}
    assert not [name for name in left if ".work" in name or "partial" in name]
    results = [json.loads((tmp_path / f"{run}.json").read_text()) for run in ("alone", "together")]
    assert results[0]["plan_digest"] == results[1]["plan_digest"]
    assert together.stdout.count("parameters;") == 1, "only the first process tells"


@pytest.mark.slow
def test_too_few_windows_for_the_workers(llama: Path, text: Path, tmp_path: Path) -> None:
    outcome = prune(text, tmp_path / "out", llama, *LAUNCHER, samples=16)
    assert outcome.returncode != 0
    assert "error: 16 windows are 1 chunks of 16, too few for 2 workers" in outcome.stderr
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith("out")]


def test_bfloat16_and_float32_agree_on_what_stays(reference: Path) -> None:
    """On the embedded trained model; the figures are in benchmarks/RESULTS.md."""
    checkpoint = open_checkpoint(reference)
    token_ids = torch.randint(4096, (32, 64), generator=torch.Generator().manual_seed(0))
    plans = []
    for dtype in (torch.float32, torch.bfloat16):
        windows = Windows(token_ids, "random", Computing(dtype))
        _, scores = score_model(checkpoint, windows, CRITERION, Options())
        plans.append(allocate(checkpoint, scores, AllocateSettings(ratio=0.5), 0))
    for one, other in zip(plans[0].blocks, plans[1].blocks, strict=True):
        assert one.attention_groups == other.attention_groups
        same = set(one.ffn_channels) & set(other.ffn_channels)
        assert len(same) >= 0.97 * len(one.ffn_channels)


def test_states_on_disk_without_a_work_directory_are_the_same(llama: Path) -> None:
    held, _ = scored(llama)
    spilled, _ = scored(llama, resident=False)
    assert_same_bits(held, spilled)


def test_saved_statistics_hold_nothing_but_what_was_scored(llama: Path, tmp_path: Path) -> None:
    """Same inputs, same bytes, wherever and whenever; the scores' own digest is declared."""
    copy = tmp_path / "elsewhere" / "copied"
    shutil.copytree(llama, copy)
    for model, name in ((llama, "one"), (copy, "other")):
        with atomic_directory(tmp_path / name, KIND) as writer:
            save_statistics(*scored(model), writer)
    assert contents(tmp_path / "one") == contents(tmp_path / "other")
    written = digest_file(tmp_path / "one" / "scores.safetensors")
    assert read_manifest(tmp_path / "one").info["scores"] == written
