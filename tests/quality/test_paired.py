"""Paired differences of NLL: their mean, and its standard error over blocks of windows."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import paired
from bipline.base.errors import InvalidInput
from bipline.model.block_loop import BlockLoop
from bipline.model.opening import open_checkpoint
from bipline.model.tokenizer import load_tokenizer
from bipline.quality.perplexity import perplexity, text_windows
from bipline.storage.documents import read_documents
from tests.conftest import ASSETS
from tests.tiny import tiny_model

TEXT = ASSETS / "texts" / "prose.txt"


def test_the_error_is_that_of_means_of_neighbours() -> None:
    generator = torch.Generator().manual_seed(0)
    dense = torch.randn(83, generator=generator).double()
    losses = dense + 0.1 + 0.01 * torch.randn(83, generator=generator).double()
    mean, error = paired.paired_difference(losses, dense)
    assert mean == pytest.approx(float((losses - dense).mean()))
    means = [float((losses - dense)[first : first + 8].mean()) for first in range(0, 80, 8)]
    centre = sum(means) / 10
    variance = sum((each - centre) ** 2 for each in means) / 9
    assert error == pytest.approx(math.sqrt(variance / 10))


def test_what_all_windows_share_is_no_error() -> None:
    dense = torch.arange(32).double()
    mean, error = paired.paired_difference(dense + 1.5, dense)
    assert (mean, error) == (1.5, 0.0)


def test_losses_are_those_of_perplexity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(paired, "TOGETHER", 2)
    folders = [
        tiny_model(tmp_path / name, "llama-gqa", seed, max_position_embeddings=256)
        for seed, name in enumerate("ab")
    ]
    loop = BlockLoop(open_checkpoint(folders[1]))
    windows = text_windows(load_tokenizer(folders[1]), read_documents(TEXT), paired.SEQLEN, "none")
    expected = perplexity(loop, windows, "text")
    losses = paired.window_losses(folders[1], windows)
    assert losses.shape == (len(windows),)
    assert paired.perplexity_of(losses) == pytest.approx(expected.value)
    paired.main([*map(str, folders), "--text", str(TEXT)])
    assert f"{expected.value:.2f}" in capsys.readouterr().out


@pytest.mark.slow
def test_a_text_that_is_missing_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model", "llama-gqa", max_position_embeddings=256)
    absent = tmp_path / "absent.txt"
    command = [sys.executable, "-m", "benchmarks.paired", model, model, "--text", absent]
    outcome = subprocess.run(
        list(map(str, command)), cwd=ASSETS.parent, capture_output=True, text=True, check=False
    )
    assert outcome.returncode == 2, outcome
    assert outcome.stderr.strip() == f"error: {absent}: no such text file"


def test_too_few_windows_for_an_error_are_refused() -> None:
    with pytest.raises(InvalidInput, match="needs 16 windows of 128 tokens; the text has 15"):
        paired.paired_difference(torch.zeros(15), torch.zeros(15))
