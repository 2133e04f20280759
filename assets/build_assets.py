"""Rebuild the texts and the cloze task of `assets/` by sampling from the dense reference model.

Plain ancestral sampling (temperature 1, no top-k, no top-p) is deliberate: the dense model is then
the true distribution of every file, so any damage to it can only raise the expected perplexity.
The price is prose that wanders, which is harmless for measuring what pruning loses.

A document is a function of the model and of one seed: its uniform numbers come from a generator
of its own, and a token is read off the cumulative distribution in float64. Neighbours in a batch
thus have no part in it, and `--check` can sample a few documents alone and compare them with the
bytes on disk. What remains is the rounding of the model's own arithmetic, which can tip a token
once in millions. Files use seed ranges that lie far apart, so they share no seed.

A cloze row asks for the continuation that the model gave a context, among continuations it gave
to other contexts. The distractors are those the model finds about as likely after BOS alone: a
choice then cannot win by being made of common words, and what is left to tell the choices apart is
how they follow from the context, which is what pruning may lose.

    python assets/build_assets.py            write every file
    python assets/build_assets.py --check    compare the files with fresh samples and README.md
"""

import argparse
import hashlib
import json
import random
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

ASSETS = Path(__file__).resolve().parent
MODEL_DIRECTORY = ASSETS / "reference-llm"
README = ASSETS / "README.md"

SEPARATOR = "<|endoftext|>"
BATCH_SIZE = 64
CHECKED_DOCUMENTS = 4
# The model learned from windows of 256 tokens; staying below keeps every position a trained one.
DOCUMENT_TOKENS = 240
MINIMUM_WORDS = 40
# The model learned from old novels. What random prose makes of such words can only be an insult.
UNWANTED = re.compile(
    r"\b(?:nigg|negr|dark(?:y|ies)\b|jew(?:s|ish|ess)?\b|naked|nude)", re.IGNORECASE
)

CLOZE_PATH = "tasks/cloze.jsonl"
CLOZE_FIRST_SEED = 4_000_000
CLOZE_ROWS = 300
CONTEXT_TOKENS = 48
CONTINUATION_TOKENS = 16
MINIMUM_CONTEXT_WORDS = 20
MINIMUM_CONTINUATION_WORDS = 6
DISTRACTORS = 3
# Drawing from a few nearest neighbours keeps a row's distractors from being the same three as those
# of the row next to it.
NEAREST = 6


@dataclass(frozen=True)
class TextFile:
    """A text to sample: where it goes, its first document's seed and the bytes it should reach."""

    path: str
    first_seed: int
    minimum_bytes: int


TEXT_FILES = (
    TextFile("texts/calibration.txt", 1_000_000, 200_000),
    TextFile("texts/recovery.txt", 2_000_000, 300_000),
    TextFile("texts/held-out.txt", 3_000_000, 100_000),
)


@dataclass(frozen=True)
class Passage:
    """A sampled context and the continuation that the same model gave it."""

    seed: int
    context: str
    continuation: str


class Sampler:
    """The dense reference model in float32, with its tokenizer."""

    def __init__(self, directory: Path) -> None:
        self.model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            directory, dtype=torch.float32, use_safetensors=True
        ).eval()
        self.tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(directory)

    @torch.inference_mode()
    def sample(self, seeds: range, length: int) -> list[list[int]]:
        """Token ids sampled after BOS, one list per seed, each cut before its first EOS."""
        uniform = torch.stack([uniform_numbers(seed, length) for seed in seeds])
        token = torch.full((len(seeds), 1), self.tokenizer.bos_token_id)
        cache = None
        drawn = []
        for step in range(length):
            output = self.model(input_ids=token, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            token = draw(output.logits[:, -1], uniform[:, step, None].contiguous())
            drawn.append(token)
        return [self.until_end(row) for row in torch.cat(drawn, dim=1).tolist()]

    @torch.inference_mode()
    def log_likelihoods(self, texts: list[str]) -> list[float]:
        """The log-likelihood of each text, with a space before it, after BOS alone."""
        rows = [
            torch.tensor(self.tokenizer(" " + text, add_special_tokens=False).input_ids)
            for text in texts
        ]
        # Padding on the right is out of sight of a causal model; -1 marks what not to count.
        target = pad_sequence(rows, batch_first=True, padding_value=-1)
        start = torch.full((len(rows), 1), self.tokenizer.bos_token_id)
        tokens = torch.cat([start, target[:, :-1].clamp(min=0)], dim=1)
        logits = self.model(input_ids=tokens).logits.double()
        losses = cross_entropy(logits.transpose(1, 2), target, ignore_index=-1, reduction="none")
        return (-losses.sum(dim=1)).tolist()

    def until_end(self, token_ids: list[int]) -> list[int]:
        """The ids before the first EOS, or all of them."""
        end = self.tokenizer.eos_token_id
        return token_ids[: token_ids.index(end)] if end in token_ids else token_ids

    def decode(self, token_ids: list[int]) -> str:
        """The text of the ids, without special tokens."""
        text: str = self.tokenizer.decode(token_ids, skip_special_tokens=True)
        return text


def uniform_numbers(seed: int, count: int) -> torch.Tensor:
    """Uniform numbers in [0, 1) that depend on the seed alone."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, generator=generator, dtype=torch.float64)


def draw(logits: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """One token per row, by inverting the cumulative distribution at the row's uniform number."""
    cumulative = logits.double().softmax(dim=-1).cumsum(dim=-1)
    token = torch.searchsorted(cumulative, uniform, right=True)
    # Rounding can leave the last cumulative value a hair below 1 and the index one too far.
    return token.clamp(max=logits.shape[-1] - 1)


def normalise_whitespace(text: str) -> str:
    """Single spaces inside a line, at most one blank line between lines, none around the text."""
    text = re.sub(r"[^\S\n]+", " ", text)
    text = re.sub(r" ?\n ?", "\n", text)
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def without_first_word(text: str) -> str:
    """The text after its first whitespace.

    Training windows began anywhere in a novel, inside a word too, so what the model puts after BOS
    may be the tail of a word or of a multi-byte character.
    """
    parts = text.split(maxsplit=1)
    return parts[1] if len(parts) == 2 else ""


def without_last_word(text: str) -> str:
    """The text before its last whitespace: a length limit may have cut the word that follows."""
    return re.sub(r"\s\S*\Z", "", text)


def is_clean(text: str) -> bool:
    """Whether the text holds no broken byte, control character, separator or unwanted word."""
    if "\ufffd" in text or SEPARATOR in text or UNWANTED.search(text):
        return False
    return text.replace("\n", "").isprintable()


def to_document(sampler: Sampler, token_ids: list[int]) -> str | None:
    """The document behind the ids, or None where it is too short or not clean."""
    text = without_first_word(sampler.decode(token_ids))
    if len(token_ids) == DOCUMENT_TOKENS:
        text = without_last_word(text)
    text = normalise_whitespace(text)
    return text if is_clean(text) and len(text.split()) >= MINIMUM_WORDS else None


def sample_documents(sampler: Sampler, first_seed: int, batch_size: int) -> Iterator[str]:
    """Documents of consecutive seeds without end, in the order of their seeds."""
    while True:
        seeds = range(first_seed, first_seed + batch_size)
        for token_ids in sampler.sample(seeds, DOCUMENT_TOKENS):
            document = to_document(sampler, token_ids)
            if document is not None:
                yield document
        first_seed += batch_size


def with_separators(documents: list[str]) -> str:
    """The documents as the text files hold them: the separator on a line between two of them."""
    return f"\n{SEPARATOR}\n".join(documents) + "\n"


def build_text(sampler: Sampler, text_file: TextFile) -> str:
    """Distinct documents, until the file reaches its size."""
    documents: list[str] = []
    size = 0
    for document in sample_documents(sampler, text_file.first_seed, BATCH_SIZE):
        if document in documents:
            continue
        documents.append(document)
        size += len(document.encode())
        if len(documents) % BATCH_SIZE == 0:
            print(f"  {text_file.path}: {size:,} of {text_file.minimum_bytes:,} bytes", flush=True)
        if size >= text_file.minimum_bytes:
            break
    return with_separators(documents)


def to_passage(sampler: Sampler, seed: int, token_ids: list[int]) -> Passage | None:
    """Context and continuation, split at a space inside a paragraph, or None where unfit."""
    if len(token_ids) < CONTEXT_TOKENS + CONTINUATION_TOKENS:
        return None
    whole = without_last_word(sampler.decode(token_ids))
    context = without_last_word(sampler.decode(token_ids[:CONTEXT_TOKENS]))
    boundary, continuation = whole[len(context) : len(context) + 1], whole[len(context) + 1 :]
    # The harness joins query and choice by one space: any other boundary would change the text.
    if boundary != " " or not whole.startswith(context) or not is_one_line(continuation):
        return None
    context = normalise_whitespace(without_first_word(context))
    return Passage(seed, context, continuation) if is_fit(context, continuation) else None


def is_one_line(text: str) -> bool:
    """Whether the words of the text are parted by single spaces only."""
    return text == " ".join(text.split())


def is_fit(context: str, continuation: str) -> bool:
    """Whether both parts are clean and long enough to tell continuations apart."""
    if len(context.split()) < MINIMUM_CONTEXT_WORDS:
        return False
    if len(continuation.split()) < MINIMUM_CONTINUATION_WORDS:
        return False
    return is_clean(context) and is_clean(continuation)


def sample_passages(sampler: Sampler, first_seed: int) -> list[Passage]:
    """The fit passages of one batch of consecutive seeds."""
    seeds = range(first_seed, first_seed + BATCH_SIZE)
    sampled = sampler.sample(seeds, CONTEXT_TOKENS + CONTINUATION_TOKENS)
    passages = [to_passage(sampler, *pair) for pair in zip(seeds, sampled, strict=True)]
    return [passage for passage in passages if passage is not None]


def nearest_others(index: int, values: list[float]) -> list[int]:
    """The indices of the values nearest to the one at `index`, itself left out."""
    others = [other for other in range(len(values)) if other != index]
    return sorted(others, key=lambda other: abs(values[other] - values[index]))[:NEAREST]


def to_row(passage: Passage, candidates: list[str]) -> dict[str, str | list[str] | int]:
    """A cloze row: the true continuation hidden among some of the candidates."""
    generator = random.Random(passage.seed)
    choices = [passage.continuation, *generator.sample(candidates, DISTRACTORS)]
    generator.shuffle(choices)
    gold = choices.index(passage.continuation)
    return {"query": passage.context, "choices": choices, "gold": gold}


def sample_rows(sampler: Sampler, first_seed: int) -> list[str]:
    """The cloze rows of one batch of seeds, as JSON lines.

    Distractors stay within the batch, so the first rows can be checked without the rest.
    """
    passages = sample_passages(sampler, first_seed)
    continuations = [passage.continuation for passage in passages]
    likelihoods = sampler.log_likelihoods(continuations)
    lines = []
    for index, passage in enumerate(passages):
        candidates = [continuations[other] for other in nearest_others(index, likelihoods)]
        lines.append(json.dumps(to_row(passage, candidates), ensure_ascii=False) + "\n")
    return lines


def build_cloze(sampler: Sampler) -> str:
    """The rows of as many batches as the task needs."""
    rows: list[str] = []
    first_seed = CLOZE_FIRST_SEED
    while len(rows) < CLOZE_ROWS:
        rows += sample_rows(sampler, first_seed)
        first_seed += BATCH_SIZE
        print(f"  {CLOZE_PATH}: {min(len(rows), CLOZE_ROWS)} of {CLOZE_ROWS} rows", flush=True)
    return "".join(rows[:CLOZE_ROWS])


def expected_starts(sampler: Sampler) -> Iterator[tuple[str, str]]:
    """The path of each generated file with a fresh sample of how the file must begin."""
    for text_file in TEXT_FILES:
        documents = sample_documents(sampler, text_file.first_seed, CHECKED_DOCUMENTS)
        yield text_file.path, with_separators(list(islice(documents, CHECKED_DOCUMENTS)))
    yield CLOZE_PATH, "".join(sample_rows(sampler, CLOZE_FIRST_SEED))


def check(sampler: Sampler) -> list[str]:
    """One line for each file that differs from a fresh sample or from its digest in README.md."""
    problems = []
    readme = README.read_text(encoding="utf-8")
    for path, start in expected_starts(sampler):
        content = (ASSETS / path).read_bytes()
        if not content.startswith(start.encode()):
            problems.append(f"{path}: begins otherwise than a fresh sample")
        if hashlib.sha256(content).hexdigest() not in readme:
            problems.append(f"{path}: its sha256 is not the one in README.md")
        print(f"  {path}: compared {len(start.encode()):,} bytes", flush=True)
    return problems


def write(path: str, text: str) -> None:
    """Write a generated file and print the line that README.md keeps about it."""
    content = text.encode()
    (ASSETS / path).parent.mkdir(parents=True, exist_ok=True)
    (ASSETS / path).write_bytes(content)
    print(f"| `{path}` | {len(content):,} | `{hashlib.sha256(content).hexdigest()}` |", flush=True)


def build(sampler: Sampler) -> None:
    """Write every generated file."""
    for text_file in TEXT_FILES:
        write(text_file.path, build_text(sampler, text_file))
    write(CLOZE_PATH, build_cloze(sampler))


def main() -> int:
    """Build the files, or check them; the exit status is 1 where a check fails."""
    parser = argparse.ArgumentParser(description="Sample the texts and the cloze task of assets/.")
    parser.add_argument("--check", action="store_true", help="compare the files, write nothing")
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    sampler = Sampler(MODEL_DIRECTORY)
    if not arguments.check:
        build(sampler)
        return 0
    problems = check(sampler)
    print("\n".join(problems) or "every file begins as sampled and has its digest in README.md")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
