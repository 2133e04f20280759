"""Perplexity through the block loop against the plain transformers loop."""

from __future__ import annotations

import math
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from bipline.base.errors import InvalidInput
from bipline.model.block_loop import BlockLoop
from bipline.model.loading import load_model
from bipline.model.opening import open_checkpoint
from bipline.model.tokenizer import load_tokenizer
from bipline.quality.perplexity import measure_text, perplexity, text_windows
from bipline.settings.protocol import Protocol
from tests.conftest import ASSETS
from tests.tiny import tiny_model

TEXT = (ASSETS / "texts" / "prose.txt").read_text(encoding="utf-8")


def plain_losses(model: Path, windows: torch.Tensor) -> torch.Tensor:
    """Nats of every predicted token, ``[windows, seqlen - 1]``, by transformers alone."""
    loaded = load_model(model, torch.float32)
    with torch.no_grad():
        logits = loaded(windows).logits[:, :-1].float()
    losses = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), windows[:, 1:].flatten(), reduction="none"
    )
    return losses.view(len(windows), -1).double()


@pytest.fixture(scope="module")
def long_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny LLaMA of 2,048 positions with the embedded model's tokenizer."""
    model = tiny_model(
        tmp_path_factory.mktemp("long") / "llama", "llama-gqa", dtype=torch.float32,
        vocab_size=4096, max_position_embeddings=2048,
    )  # fmt: skip
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(ASSETS / "reference-llm" / name, model)
    return model


@pytest.mark.parametrize("bos", ["none", "text", "window"])
@pytest.mark.parametrize("seqlen", [17, 128, 512, 2048])
def test_block_loop_equals_transformers(
    reference: Path, long_llama: Path, seqlen: int, bos: str
) -> None:
    model = reference if seqlen <= 128 else long_llama
    texts = [TEXT] * (1 + seqlen // 256)
    windows = text_windows(load_tokenizer(model), texts, seqlen, bos)  # type: ignore[arg-type]
    measured, means = measure_text(BlockLoop(open_checkpoint(model)), windows, "text")
    assert measured.tokens == windows.shape[0] * (seqlen - 1)
    losses = plain_losses(model, windows)
    assert measured.value == pytest.approx(math.exp(float(losses.mean())), rel=1e-5)
    assert means == pytest.approx(losses.mean(1).tolist(), rel=1e-5)
    error = float(losses.mean(1).std()) / math.sqrt(len(windows))
    assert measured.windows == len(windows) > 1
    assert measured.nll_stderr == pytest.approx(error, rel=1e-3)
    assert measured.stderr == pytest.approx(measured.value * error, rel=1e-3)


@pytest.mark.parametrize(("bos", "stride"), [("none", 16), ("none", 5), ("window", 7)])
def test_with_a_stride_the_last_tokens_of_overlapping_windows_count(
    reference: Path, bos: str, stride: int
) -> None:
    """Every token after the first window is predicted once, from at least the rest of a window."""
    tokenizer = load_tokenizer(reference)
    windows = text_windows(tokenizer, [TEXT], 32, bos, stride=stride)  # type: ignore[arg-type]
    text = windows[:, 1:] if bos == "window" else windows
    for before, after in pairwise(text):
        assert after[:-stride].equal(before[stride:])
    ids = torch.cat([text[0], *(each[-stride:] for each in text[1:])])
    apart = text_windows(tokenizer, [TEXT], 32, bos)  # type: ignore[arg-type]
    apart = apart[:, 1:] if bos == "window" else apart
    assert ids[: apart.numel()].equal(apart.flatten()[: len(ids)])
    found, means = measure_text(
        BlockLoop(open_checkpoint(reference)), windows, "text", stride=stride
    )
    losses = plain_losses(reference, windows)[:, -stride:]
    assert found.tokens == losses.numel() == len(windows) * stride
    assert found.nll == pytest.approx(float(losses.mean()), rel=1e-5)
    assert means == pytest.approx(losses.mean(1).tolist(), rel=1e-5)


@pytest.mark.parametrize(("bos", "stride"), [("none", 32), ("none", 40), ("window", 31)])
def test_a_stride_of_a_window_or_more_is_refused(bos: str, stride: int) -> None:
    with pytest.raises(ValueError, match=f"stride {stride}: a window has"):
        Protocol(seqlen=32, bos=bos, stride=stride)  # type: ignore[arg-type]


def test_one_window_has_no_standard_error(reference: Path) -> None:
    windows = torch.arange(8).view(1, 8)
    measured = perplexity(BlockLoop(open_checkpoint(reference)), windows, "text")
    assert (measured.nll_stderr, measured.windows) == (None, 1)


def test_bos_policies_place_the_bos(reference: Path) -> None:
    tokenizer = load_tokenizer(reference)
    none, text, window = (
        text_windows(tokenizer, [TEXT], 32, bos)  # type: ignore[arg-type]
        for bos in ("none", "text", "window")
    )
    bos = tokenizer.bos_token_id
    assert int((none == bos).sum()) == 0
    assert int((text == bos).sum()) == 1
    assert int(text[0, 0]) == bos
    assert bool((window[:, 0] == bos).all())
    assert text[0, 1:].equal(none[0, :-1])


def test_text_is_joined_and_tokenised_once(reference: Path) -> None:
    tokenizer = load_tokenizer(reference)
    joined = text_windows(tokenizer, ["one two", "three four five six"], 4, "none")
    whole = text_windows(tokenizer, ["one two\n\nthree four five six"], 4, "none")
    assert joined.equal(whole)


def test_short_text_is_refused(reference: Path) -> None:
    with pytest.raises(InvalidInput, match="shorter than one window of 128"):
        text_windows(load_tokenizer(reference), ["too short"], 128, "none")


@pytest.mark.slow
def test_record_of_a_real_text(data: Path) -> None:
    """stories260K on stories it never saw: its perplexity is known to be near 5."""
    from bipline.quality.evaluate import evaluate
    from bipline.settings.protocol import Protocol

    record = evaluate(
        data / "models" / "stories260K",
        Protocol(seqlen=128),
        {"tinystories": data / "text" / "tinystories.valid.txt"},
        {},
    )
    assert 4 < record.perplexity["tinystories"].value < 6
    assert record.protocol["texts"]["tinystories"]
    assert record.environment["torch"]


@pytest.mark.slow
def test_word_perplexity_is_that_of_lm_evals_wikitext(reference: Path) -> None:
    """A page of one window, with the BOS that lm-eval conditions on."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks.wikitext.preprocess_wikitext import process_results, wikitext_detokenizer

    page = wikitext_detokenizer({"page": " = Oaks = \n\n" + TEXT[:900]})
    model, tokenizer = load_model(reference, torch.float32), load_tokenizer(reference)
    harness = HFLM(
        pretrained=model, tokenizer=tokenizer, batch_size=1, max_length=512, add_bos_token=False
    )
    request = Instance("loglikelihood_rolling", {"page": page}, (page,), 0)
    told = process_results({"page": page}, harness.loglikelihood_rolling([request]))
    tokens = len(tokenizer(page, add_special_tokens=False)["input_ids"])
    windows = text_windows(tokenizer, [page], tokens + 1, "window")
    measured = perplexity(BlockLoop(open_checkpoint(reference)), windows, "page")
    loglikelihood, words = told["word_perplexity"]
    assert measured.tokens == tokens
    ours = math.exp(measured.nll * measured.tokens / words)
    assert ours == pytest.approx(math.exp(-loglikelihood / words), rel=1e-5)


def test_a_stride_that_makes_more_windows_than_memory_holds_is_refused(
    reference: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = load_tokenizer(reference)
    whole = text_windows(tokenizer, [TEXT], 32, "none")
    monkeypatch.setattr("bipline.quality.perplexity.memory_limit", lambda _: whole.nbytes)
    assert text_windows(tokenizer, [TEXT], 32, "none").equal(whole)
    with pytest.raises(InvalidInput, match=r"stride 1: [\d,]+ windows of 32 tokens take"):
        text_windows(tokenizer, [TEXT], 32, "none", stride=1)
