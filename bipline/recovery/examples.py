"""What a recovery trains on: windows of token ids, and which of the tokens are learned.

Of plain text every token is. Of chats and Alpaca's instructions, packed one after the other into
full windows, the answers alone are.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bipline.base.errors import InvalidInput
from bipline.base.progress import note
from bipline.model.token_ids import token_ids
from bipline.quality.perplexity import text_windows
from bipline.settings.recipes import Schedule
from bipline.storage.documents import Chat, Instruction, read_documents

NOT_LEARNED = -100
# Where a tokenizer has no chat template: the headings that Alpaca's prompts use.
HEADINGS = {"system": "", "user": "### Instruction:\n", "assistant": "### Response:\n"}
END = "\n\n"
# Alpaca's prompts, as LLM-Pruner's training writes them (arXiv 2305.11627).
ASKED = "Below is an instruction that describes a task"
PAIRED = ", paired with an input that provides further context"
WRITE = ". Write a response that appropriately completes the request."


@dataclass(frozen=True)
class Examples:
    """Windows ``[windows, seqlen]`` and their labels: ``NOT_LEARNED`` where nothing is learned.

    The token that opens a window is predicted by none, so it is never learned.
    """

    windows: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.windows)

    def part(self, rows: slice) -> Examples:
        """Some of the windows."""
        return Examples(self.windows[rows], self.labels[rows])


def examples_of(tokenizer: Any, text: Path | str, recipe: Schedule) -> Examples:
    """The examples of a text. Raises InvalidInput for one with fewer than a step's windows."""
    documents = read_documents(text)
    if any(isinstance(document, Chat) for document in documents):
        found = _packed(tokenizer, documents, recipe.seqlen)
    else:
        windows = text_windows(tokenizer, documents, recipe.seqlen, "none")
        found = Examples(windows, windows.clone())
    found.labels[:, 0] = NOT_LEARNED
    least = recipe.batch_size + (1 if recipe.patience else 0)
    if len(found) < least:
        raise InvalidInput(
            f"the recovery text has {len(found)} windows of {recipe.seqlen} tokens, "
            f"fewer than one batch of {recipe.batch_size}"
            + (" and one set aside" if recipe.patience else "")
        )
    return found


def _packed(tokenizer: Any, documents: list[str], seqlen: int) -> Examples:
    """Chats one after the other, cut into windows; those without an answer in them are left out."""
    if not all(isinstance(document, Chat) for document in documents):
        raise InvalidInput("the recovery text holds both chats and plain rows; give one or other")
    pieces = [piece for chat in documents for piece in _pieces(tokenizer, chat)]  # type: ignore[arg-type]
    texts = [text for text, _ in pieces]
    ids: list[int] = []
    labels: list[int] = []
    found = token_ids(tokenizer, texts, special_tokens=False)
    for (_, learned), part in zip(pieces, found, strict=True):
        ids += part
        labels += part if learned else [NOT_LEARNED] * len(part)
    count = len(ids) // seqlen
    windows, wanted = (
        torch.tensor(each[: count * seqlen], dtype=torch.int64).view(count, seqlen)
        for each in (ids, labels)
    )
    useful = (wanted[:, 1:] != NOT_LEARNED).any(1)
    if dropped := int((~useful).sum()):
        note(f"{dropped} windows of the recovery text hold no answer and are left out")
    return Examples(windows[useful], wanted[useful])


def _pieces(tokenizer: Any, chat: Chat) -> list[tuple[str, bool]]:
    """A chat's text in pieces, and whether each is learned: an answer with what ends it."""
    if not getattr(tokenizer, "chat_template", None):
        return (
            _asked(tokenizer, chat) if isinstance(chat, Instruction) else _headed(tokenizer, chat)
        )
    pieces, before = [], ""
    for number, message in enumerate(chat.messages, start=1):
        if message["role"] == "assistant":
            opened = _rendered(tokenizer, chat.messages[: number - 1], opened=True)
            closed = _rendered(tokenizer, chat.messages[:number], opened=False)
            if not (opened.startswith(before) and closed.startswith(opened)):
                raise InvalidInput(
                    f"{tokenizer.name_or_path}: the chat template does not write an answer after "
                    "what was said before it, so answers cannot be told from the rest; train on "
                    "plain text"
                )
            pieces += [(opened[len(before) :], False), (closed[len(opened) :], True)]
            before = closed
    return pieces


def _rendered(tokenizer: Any, messages: list[dict[str, str]], opened: bool) -> str:
    try:
        return str(
            tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=opened)
        )
    except Exception as error:  # a template may raise anything
        reason = " ".join(str(error).split())[:200]
        raise InvalidInput(f"{tokenizer.name_or_path}: its chat template fails: {reason}") from None


def _headed(tokenizer: Any, chat: Chat) -> list[tuple[str, bool]]:
    ends = tokenizer.eos_token or ""
    pieces = []
    for message in chat.messages:
        learned = message["role"] == "assistant"
        pieces.append((HEADINGS.get(message["role"], ""), False))
        pieces.append((message["content"] + (ends if learned else "") + END, learned))
    return pieces


def _asked(tokenizer: Any, row: Instruction) -> list[tuple[str, bool]]:
    parts = [ASKED + (PAIRED if row.given else "") + WRITE, f"### Instruction:\n{row.instruction}"]
    if row.given:
        parts.append(f"### Input:\n{row.given}")
    prompt = END.join([*parts, HEADINGS["assistant"]])
    return [(prompt, False), (row.answer + (tokenizer.eos_token or END), True)]
