"""Small tokenizers of every kind that llama.cpp has, trained here."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, processors, trainers
from tokenizers import pre_tokenizers as splits
from transformers import PreTrainedTokenizerFast

from bipline.delivery.formats.gguf.tokenizer import SPLITS
from bipline.delivery.verification import PAGE

VOCAB_SIZE = 520
SPECIAL = ["<unk>", "<s>", "</s>", "<|im_start|>"]
SENTENCES = [
    f"The {n}th cat's sat on mat {n * 7} and  saw {n % 5} birds fly by; they'LL go.\n\n"
    for n in range(300)
]
PATTERNS = {name: pattern for pattern, name in SPLITS.items()}


def byte_level(
    *before: Any, use_regex: bool = True, prefix: bool = False, normalizer: Any = None
) -> Tokenizer:
    """BPE of bytes, split before as told."""
    tokenizer = Tokenizer(models.BPE())
    bytes_ = splits.ByteLevel(add_prefix_space=prefix, use_regex=use_regex)
    tokenizer.pre_tokenizer = splits.Sequence([*before, bytes_]) if before else bytes_
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = splits.ByteLevel.alphabet()
    return trained(tokenizer, trainers.BpeTrainer, vocab_size=500, initial_alphabet=alphabet)


def trained(tokenizer: Tokenizer, trainer: Any, **options: Any) -> Tokenizer:
    """Train it on a page and some sentences; a text begins with <s>."""
    chosen = {"special_tokens": SPECIAL, **options}
    tokenizer.train_from_iterator([PAGE, *SENTENCES], trainer(show_progress=False, **chosen))
    opening = [("<s>", tokenizer.token_to_id("<s>"))]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=opening
    )
    return tokenizer


def split_by(name: str, **options: Any) -> Tokenizer:
    """BPE of bytes, split by a pattern that llama.cpp knows by this name."""
    return byte_level(splits.Split(Regex(PATTERNS[name]), "isolated"), use_regex=False, **options)


def sentence_pieces() -> Tokenizer:
    """SentencePiece's BPE, as tokenizer.json has it: unknown characters become bytes."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    bytes_ = [f"<0x{value:02X}>" for value in range(256)]
    special = [*SPECIAL, *bytes_]
    made = trained(
        tokenizer, trainers.BpeTrainer, vocab_size=500, limit_alphabet=60, special_tokens=special
    )
    value = json.loads(made.to_str())
    value["added_tokens"] = [a for a in value["added_tokens"] if a["content"] not in bytes_]
    return Tokenizer.from_str(json.dumps(value))


def unigram() -> Tokenizer:
    """SentencePiece's Unigram, several spaces made one."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = splits.Metaspace()
    return trained(tokenizer, trainers.UnigramTrainer, vocab_size=400, unk_token="<unk>")


def word_pieces() -> Tokenizer:
    """BERT's."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.pre_tokenizer = splits.Whitespace()
    return trained(tokenizer, trainers.WordPieceTrainer, vocab_size=400)


def words() -> Tokenizer:
    """Whole words."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = splits.Whitespace()
    return trained(tokenizer, trainers.WordLevelTrainer, vocab_size=100)


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "gpt-2": byte_level,
    "smollm": lambda: byte_level(splits.Digits(individual_digits=True)),
    "llama-bpe": lambda: split_by("llama-bpe"),
    "qwen2": lambda: split_by("qwen2", normalizer=normalizers.NFC()),
    "tekken": lambda: split_by("tekken"),
    "sentence pieces": sentence_pieces,
    "unigram": unigram,
}
REFUSED: dict[str, tuple[Callable[[], Tokenizer], str]] = {
    "BERT": (word_pieces, "WordPiece"),
    "words": (words, "WordLevel of whole words"),
    "space before": (lambda: byte_level(prefix=True), "pre-tokenizer"),
    "unknown pattern": (
        lambda: byte_level(splits.Split(Regex(r"\p{L}+"), "isolated"), use_regex=False),
        "pre-tokenizer",
    ),
    "removed pattern": (
        lambda: byte_level(splits.Split(Regex(PATTERNS["qwen2"]), "removed"), use_regex=False),
        "pre-tokenizer",
    ),
    "grouped digits": (lambda: byte_level(splits.Digits()), "pre-tokenizer"),
    "small letters": (lambda: byte_level(normalizer=normalizers.Lowercase()), "Lowercase"),
}


def save(tokenizer: Tokenizer, directory: Path, **options: Any) -> Path:
    """Put a tokenizer beside a model, in place of the one that is there."""
    unknown = {"unk_token": "<unk>"} if tokenizer.token_to_id("<unk>") is not None else {}
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", **unknown, **options
    ).save_pretrained(directory)
    return directory
