"""A tiny GQA model with a byte-level tokenizer, pruned and measured by the real core."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from bipline.compression.allocate import allocate
from bipline.compression.calibrate import calibrate
from bipline.compression.computing import Computing
from bipline.compression.criteria.interface import Options
from bipline.compression.prune import prune
from bipline.compression.score import score_model
from bipline.compression.statistics import save_statistics
from bipline.compression.windows import Windows
from bipline.delivery.export import PackageContents, write_package
from bipline.delivery.verification import PAGE
from bipline.model.opening import open_checkpoint
from bipline.quality.evaluate import evaluate
from bipline.settings.line import AllocateSettings
from bipline.settings.protocol import Protocol
from bipline.storage.digests import digest_file
from bipline.storage.directory import atomic_directory
from bipline.storage.manifest import Manifest, read_manifest
from bipline.values.recovery import RecoveryRecord
from bipline.values.resolution import Resolution, ResolvedModel, ResolvedText

SENTENCES = [f"The {n}th cat sat on mat {n * 7} and saw {n % 5} birds fly by." for n in range(400)]
CRITERION = "llm-bip-glu"


def make_tokenizer(directory: Path, vocab_size: int = 320, add_prefix_space: bool = False) -> None:
    """A byte-level BPE, trained here, that takes any text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*SENTENCES, PAGE], trainer)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    wrapped.save_pretrained(directory)


def make_dense(directory: Path, tied: bool = False) -> Path:
    """A random LLaMA: 8 heads in 4 KV groups, 3 blocks; logits far enough apart to compare."""
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=320,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=256,
        initializer_range=0.2,
        tie_word_embeddings=tied,
        bos_token_id=0,
        eos_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    make_tokenizer(directory)
    return directory


def make_contents(
    directory: Path, ratio: float, tied: bool = False, **option: str
) -> PackageContents:
    """Everything a package needs, by the real stages."""
    dense = make_dense(directory / "dense", tied)
    texts = {name: directory / f"{name}.txt" for name in ("calibration", "held-out")}
    texts["calibration"].write_text("\n".join(SENTENCES[:200]), encoding="utf-8")
    texts["held-out"].write_text("\n".join(SENTENCES[380:]), encoding="utf-8")
    checkpoint = open_checkpoint(dense)
    drawn = calibrate(checkpoint.folder, [(texts["calibration"], 1.0)], 16, 32, 0)
    windows = Windows(drawn.token_ids, drawn.digest, Computing())
    statistics, scores = score_model(checkpoint, windows, CRITERION, Options())
    with atomic_directory(directory / "statistics", "statistics") as writer:
        save_statistics(statistics, scores, writer)
    asked = AllocateSettings(allocation="uniform", ratio=ratio, allocation_option=option)
    plan = allocate(checkpoint, scores, asked, 0)
    prune(checkpoint, plan, directory / "pruned")
    held_out = {"held-out": texts["held-out"]}
    records = {
        stage: evaluate(directory / stage, Protocol(seqlen=32), held_out, {})
        for stage in ("dense", "pruned")
    }
    return PackageContents(
        model=directory / "pruned",
        dense=dense,
        plan=plan,
        statistics=directory / "statistics",
        records=records,
        recovery=None,
        resolution=make_resolution(dense, texts),
        config={"model": str(dense), "texts": {"held-out": str(texts["held-out"])}, "state": "."},
    )


def make_resolution(dense: Path, texts: dict[str, Path]) -> Resolution:
    """The resolution of a local model and two texts."""
    return Resolution(
        model=ResolvedModel(
            source=str(dense),
            location=str(dense),
            tensor_digest=open_checkpoint(dense).tensor_digest,
            files={"config.json": digest_file(dense / "config.json")},
            tokenizer_digest=digest_file(dense / "tokenizer.json"),
            licence="apache-2.0",
        ),
        texts={
            name: ResolvedText(
                source=str(path), location=str(path), sha256=digest_file(path), documents=1
            )
            for name, path in texts.items()
        },
    )


def with_recovery(contents: PackageContents) -> PackageContents:
    """The same contents as if a recovery had been accepted that changed nothing."""
    recovery = RecoveryRecord(
        accepted=True,
        reason="held-out perplexity fell: 20.00 before, 19.00 after",
        held_out_perplexity_before=20.0,
        held_out_perplexity_after=19.0,
        merge_difference=1e-7,
        recipe={"rank": 8},
        tokens=4096,
    )
    records = {**contents.records, "recovered": contents.records["pruned"]}
    return dataclasses.replace(contents, records=records, recovery=recovery)


def write(contents: PackageContents, out: Path) -> Manifest:
    """Write a package and read back its manifest."""
    with atomic_directory(out, "package") as writer:
        write_package(contents, writer)
    return read_manifest(out)


def altered(contents: PackageContents, **changes: Any) -> PackageContents:
    """The contents with some fields replaced."""
    return dataclasses.replace(contents, **changes)


@pytest.fixture(scope="session")
def contents(tmp_path_factory: pytest.TempPathFactory) -> PackageContents:
    """6 of 8 heads stay, which no longer divide hidden_size: exported as Mistral."""
    return make_contents(tmp_path_factory.mktemp("uneven"), 0.25)


@pytest.fixture(scope="session")
def halved(tmp_path_factory: pytest.TempPathFactory) -> PackageContents:
    """4 of 8 heads stay and the embeddings are tied: still LLaMA."""
    return make_contents(tmp_path_factory.mktemp("halved"), 0.5, tied=True)


@pytest.fixture(scope="session")
def package(contents: PackageContents, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished package."""
    out = tmp_path_factory.mktemp("package") / "package"
    write(contents, out)
    return out
