"""Seeded sampling from the dense reference model, and what makes sampled text usable.

The uniform numbers of a sample come from a generator of its own and a token is read off the
cumulative distribution in float64, so neighbours in a batch have no part in it.
"""

import re
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

SEPARATOR = "<|endoftext|>"
# The model learned from old novels. What random prose makes of such words can only be an insult.
UNWANTED = re.compile(
    r"\b(?:nigg|negr|dark(?:y|ies)\b|jew(?:s|ish|ess)?\b|naked|nude)", re.IGNORECASE
)


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
