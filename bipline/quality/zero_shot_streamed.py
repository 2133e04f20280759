"""Log-likelihoods of continuations through the block loop, for a model larger than memory.

Inputs are sorted by length and padded on the right, which a causal model does not look at. As
many of them as memory has room for run through all blocks together, so that each reading of the
weights serves thousands of questions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from bipline.base.progress import ticking
from bipline.model.block_loop import HEAD_TOKENS, BlockLoop, micro_batch_of
from bipline.model.memory import memory_limit, memory_need, states_fit
from bipline.quality.zero_shot_tokens import Encoded
from bipline.values.partial_evaluation import Answer, Part

# The ids that a model is given, and which answers they serve: one-token choices share theirs.
Inputs = list[tuple[tuple[int, ...], list[int]]]


def streamed_answers(
    loop: BlockLoop, encoded: Sequence[Encoded], max_memory: int | None, what: str
) -> list[Answer]:
    """What lm-eval's ``_loglikelihood_tokens`` gives: an answer for every pair of ids.

    ``what`` is for the progress display. Raises InvalidInput or EnvironmentFailure where
    ``max_memory``, or the machine, has no room for a block and one batch.
    """
    batches = list(_batches(_inputs(encoded), streamed_batch(loop)))
    groups = list(_groups(loop, batches, max_memory))
    found: dict[int, Answer] = {}
    with ticking(what, len(groups) * loop.checkpoint.shape.num_hidden_layers) as tick:
        for group in groups:
            states = _last_states(loop, group, tick)
            for batch, hidden in zip(group, states, strict=True):
                found.update(_answers(loop, batch, hidden, encoded))
    return [found[number] for number in range(len(encoded))]


def streamed_batch(loop: BlockLoop) -> Callable[[int], int]:
    """How many inputs run together, by the length of the longest of them."""
    return lambda length: micro_batch_of(length, loop.micro_batch)


def share_of(encoded: Sequence[Encoded], part: Part, size_of: Callable[[int], int]) -> list[int]:
    """The numbers of the pairs whose batches are a part's: every so many-th of all batches.

    lm-eval sorts and groups as is done here, so what is asked of a share alone runs in the very
    batches of the whole, and gives its bits.
    """
    index, count = part
    batches = list(_batches(_inputs(encoded), size_of))[index::count]
    return sorted(number for batch in batches for _, served in batch for number in served)


def _inputs(encoded: Sequence[Encoded]) -> Inputs:
    """Distinct inputs, longest first: the last token of a continuation is predicted only."""
    served: dict[tuple[int, ...], list[int]] = {}
    for number, (_, context, continuation) in enumerate(encoded):
        served.setdefault((*context, *continuation[:-1]), []).append(number)
    return sorted(served.items(), key=lambda each: (-len(each[0]), each[0]))


def _batches(inputs: Inputs, size_of: Callable[[int], int]) -> Iterator[Inputs]:
    """As many inputs as run in one go, of about one length."""
    start = 0
    while start < len(inputs):
        size = size_of(len(inputs[start][0]))
        yield inputs[start : start + size]
        start += size


def _groups(
    loop: BlockLoop, batches: list[Inputs], max_memory: int | None
) -> Iterator[list[Inputs]]:
    """Batches whose hidden states memory has room for together, one at the least."""
    if not batches:
        return
    widest = torch.empty(len(batches[0]), len(batches[0][0][0]), device="meta")
    need = memory_need(loop, widest, logits=True)
    states_fit(need, max_memory)
    room = memory_limit(max_memory) - need.least
    token = loop.checkpoint.shape.hidden_size * loop.dtype.itemsize
    group: list[Inputs] = []
    held = 0
    for batch in batches:
        size = len(batch) * len(batch[0][0]) * token
        if group and held + size > room:
            yield group
            group, held = [], 0
        group.append(batch)
        held += size
    yield group


@torch.no_grad()
def _last_states(loop: BlockLoop, group: list[Inputs], tick: Callable[[], None]) -> list[Tensor]:
    """Hidden states after the last block, ``[inputs, tokens, hidden_size]`` by batch."""
    states = [loop.embed(_padded(batch)).cpu() for batch in group]
    for block in loop.blocks():
        for number, hidden in enumerate(states):
            states[number] = block.run(hidden.to(loop.device)).cpu()
        tick()
    return states


def _padded(batch: Inputs) -> Tensor:
    """Token ids ``[inputs, tokens]``, zeros behind the shorter ones."""
    ids = torch.zeros(len(batch), len(batch[0][0]), dtype=torch.int64)
    for row, (tokens, _) in zip(ids, batch, strict=True):
        row[: len(tokens)] = torch.tensor(tokens)
    return ids


@torch.no_grad()
def _answers(
    loop: BlockLoop, batch: Inputs, hidden: Tensor, encoded: Sequence[Encoded]
) -> dict[int, Answer]:
    """The answers that a batch serves, by their numbers, from its last hidden states."""
    numbers, places, targets = [], [], []
    for (tokens, served), states in zip(batch, hidden, strict=True):
        for number in served:
            continuation = encoded[number][2]
            numbers.append(number)
            places.append(states[len(tokens) - len(continuation) : len(tokens)])
            targets.append(torch.tensor(continuation))
    output, nats, likeliest = loop.output_weight(), [], []
    wanted = torch.cat(targets).split(HEAD_TOKENS)
    for some, ids in zip(torch.cat(places).split(HEAD_TOKENS), wanted, strict=True):
        chosen = ids.to(loop.device)
        logits = loop.token_logits(some.to(loop.device), output).log_softmax(-1)
        nats.append(logits.gather(1, chosen[:, None])[:, 0].cpu())
        likeliest.append((logits.argmax(-1) == chosen).cpu())
    lengths = [len(each) for each in targets]
    by_answer = zip(
        torch.cat(nats).split(lengths), torch.cat(likeliest).split(lengths), strict=True
    )
    return {
        number: (float(values.sum()), bool(greedy.all()))
        for number, (values, greedy) in zip(numbers, by_answer, strict=True)
    }
