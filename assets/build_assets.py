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
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from sampling import (
    SEPARATOR,
    Sampler,
    is_clean,
    normalise_whitespace,
    without_first_word,
    without_last_word,
)
from transformers.utils import logging

ASSETS = Path(__file__).resolve().parent
MODEL_DIRECTORY = ASSETS / "reference-llm"
README = ASSETS / "README.md"

BATCH_SIZE = 64
CHECKED_DOCUMENTS = 4
# The model learned from windows of 256 tokens; staying below keeps every position a trained one.
DOCUMENT_TOKENS = 240
MINIMUM_WORDS = 40

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
    TextFile("texts/recovery-judge.txt", 5_000_000, 50_000),
)


@dataclass(frozen=True)
class Passage:
    """A sampled context and the continuation that the same model gave it."""

    seed: int
    context: str
    continuation: str


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
