"""The block loop: a model runs block by block, and one block is computed with at a time.

Everything that needs the model's forward pass (scoring, perplexity, gradients, compensation)
goes through this small interface: run block ``i`` on hidden states, observe named tensors on the
way, replace the block's weights. The arithmetic is transformers' own decoder block, filled with
the tensors of one block, while the next block is read ahead.

Shapes: token ids and hidden states come in windows, ``[windows, seqlen]`` and
``[windows, seqlen, hidden_size]``; observed tensors come flat, ``[tokens, width]``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from bipline.base.allocator import keep_freed_memory
from bipline.base.errors import InvalidInput
from bipline.model.agreement import check_agreement
from bipline.model.block_reader import BlockReader, Weights
from bipline.model.checkpoint import TORCH_DTYPES, Checkpoint
from bipline.model.families import build_of
from bipline.model.hidden_states import CHUNK_WINDOWS, HiddenStates, StatesShape
from bipline.model.products import quick_attention
from bipline.model.surroundings import Surroundings

# Tokens per micro-batch unless told otherwise: enough for the matrix products to run at full
# speed, few enough for what a block makes of them to stay small. It does not depend on the
# machine, because the division of the work shows in the last bits of a sum.
MICRO_BATCH_TOKENS = 2048
# Tokens whose logits exist at once: with a vocabulary of 128k that is 0.26 GB in float32.
HEAD_TOKENS = 512

# What is added to the stream.
ADDED = ("attention_projected", "ffn_projected", "ffn_output")

Activations = dict[str, Tensor]
Observer = Callable[[Activations], None]


def micro_batch_of(seqlen: int, asked: int | None) -> int:
    """Windows that run through a block together, never more than a chunk.

    Raises InvalidInput for a micro-batch that is not between one window and a chunk.
    """
    if asked is None:
        return max(1, min(CHUNK_WINDOWS, MICRO_BATCH_TOKENS // seqlen))
    if not 1 <= asked <= CHUNK_WINDOWS:
        raise InvalidInput(f"micro-batch {asked}: must lie between 1 and {CHUNK_WINDOWS} windows")
    return asked


@dataclass
class Block:
    """The resident block: its weights and how to run it. Valid until the next one is taken."""

    index: int
    weights: Weights
    loop: BlockLoop

    def run(self, hidden: Tensor, observe: Observer | None = None) -> Tensor:
        """Run windows through the block, one micro-batch after the other.

        ``observe`` is called once per micro-batch with the named tensors of the family's build,
        flat: ``hidden`` (what enters the block), ``attention_output`` (input of o_proj),
        ``residual`` (before the FFN and its norm), ``gate`` and ``up`` (outputs of gate_proj and
        up_proj), ``ffn_activation`` (input of down_proj), ``ffn_output`` (what the FFN adds);
        where norms lie behind sublayers, ``attention_projected`` and ``ffn_projected``, which
        enter them; of experts ``expert_input`` ``[tokens, d]``, ``expert_index`` (those that a
        token passes through) and ``expert_weights`` (what each counts for it). Those of a sublayer
        that the block lacks are not among them.
        """
        size = micro_batch_of(hidden.shape[1], self.loop.micro_batch)
        parts = [self.loop.run_part(self, part, observe) for part in hidden.split(size)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def advance(
        self, states: HiddenStates, observe: Callable[[int, Activations], None] | None = None
    ) -> None:
        """Run all chunks of hidden states, in place; ``observe`` also gets the chunk's number."""

        def step(number: int, chunk: Tensor) -> Tensor:
            seen: Observer | None = None
            if observe is not None:
                seen = lambda activations: observe(number, activations)  # noqa: E731
            return self.run(chunk.to(self.loop.device), seen)

        states.advance(step)

    def replace(self, weights: Weights) -> None:
        """Replace some of the block's weights, by their names inside the block."""
        self.weights = {**self.weights, **weights}

    def source_weights(self) -> Weights:
        """The weights with no rounding by the computing dtype: read again only where it would."""
        checkpoint = self.loop.checkpoint
        names = checkpoint.stored_names(self.index)
        held = {TORCH_DTYPES[checkpoint.tensors[full].dtype] for full in names.values()}
        rounded = checkpoint.multipliers and self.loop.dtype.itemsize < torch.float32.itemsize
        wide = all(torch.promote_types(dtype, self.loop.dtype) == self.loop.dtype for dtype in held)
        if wide and not rounded:
            return self.weights
        return checkpoint.block_weights(self.index)


class BlockLoop:
    """A checkpoint, ready to be run block by block in ``dtype`` on ``device``.

    ``micro_batch`` is the number of windows that run together; None picks it by their length.
    Raises InvalidInput for a config whose models transformers would run otherwise.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        micro_batch: int | None = None,
    ) -> None:
        keep_freed_memory()
        where = f"{checkpoint.location}/config.json"
        check_agreement(checkpoint.config, lambda small, ids: BlockLoop(small).logits(ids), where)
        self.checkpoint = checkpoint
        self.dtype = dtype
        self.device = torch.device(device)
        self.micro_batch = micro_batch
        self.reader = BlockReader(checkpoint, dtype, self.device)
        build = build_of(checkpoint.family)
        outside = (*checkpoint.family.named(build.outside_weights), *checkpoint.family.outside)
        held = {name: checkpoint.tensor(name) for name in outside if name != build.embedding}
        self.around = Surroundings(checkpoint.config, held, dtype, self.device)
        if checkpoint.multipliers:
            self.around.set_in_blocks(checkpoint.family.output_multiplier, 1.0)
        self._observed = build.observed

    def states(
        self, token_ids: Tensor, folder: Path | None = None, resident: bool = True
    ) -> HiddenStates:
        """Empty hidden states for these windows; :meth:`embed_into` makes the first generation."""
        windows, seqlen = token_ids.shape
        shape = StatesShape(windows, seqlen, self.checkpoint.shape.hidden_size, self.dtype)
        return HiddenStates(shape, folder, resident)

    def embed_into(self, states: HiddenStates, token_ids: Tensor) -> None:
        """Fill hidden states with what enters the first block (see :meth:`embed`)."""
        chunks = token_ids.split(CHUNK_WINDOWS)
        states.fill(lambda number: self.embed(chunks[number]))

    def embed(self, token_ids: Tensor, first: int = 0) -> Tensor:
        """Hidden states before the first block: ``[windows, seqlen, hidden_size]``.

        So many tokens lie before the ``first`` that is given. Raises InvalidInput for a token id
        above the vocabulary, or a window longer than the positions the model knows.
        """
        self.check(token_ids, first)
        used, where = token_ids.unique(return_inverse=True)
        rows = self.checkpoint.rows(build_of(self.checkpoint.family).embedding, used)
        return self.around.embedded(rows.to(self.device, self.dtype), where.to(self.device), first)

    def blocks(self, indices: Iterable[int] | None = None) -> Iterator[Block]:
        """The blocks in order, or those of ``indices``; taking the next one overwrites a block."""
        wanted = range(self.checkpoint.shape.num_hidden_layers) if indices is None else indices
        for index, weights in self.reader.blocks(wanted):
            yield Block(index, weights, self)

    def block(self, index: int) -> Block:
        """One block in memory of its own."""
        return Block(index, self.reader.block(index), self)

    @torch.no_grad()
    def run_part(self, block: Block, hidden: Tensor, observe: Observer | None) -> Tensor:
        """Run one micro-batch through a block (see :meth:`Block.run`)."""
        seen: Activations = {}
        handles = self._hook(self.around.blocks[block.index], seen) if observe else []
        try:
            output = self.forward(block.index, block.weights, hidden)
        finally:
            for handle in handles:
                handle.remove()
        if observe:
            observe(seen)
        return output

    def forward(
        self,
        index: int,
        weights: Weights,
        hidden: Tensor,
        cache: DynamicCache | None = None,
        first: int = 0,
    ) -> Tensor:
        """transformers' decoder block with these weights; gradients flow into them if recorded.

        ``cache`` holds the blocks' keys and values of the ``first`` tokens, and takes up this
        block's of those that follow, which are then all that ``hidden`` has.
        """
        handed = self.around.handed(index, hidden, cache, first)
        held = {name: w.to(self.device, self.dtype) for name, w in weights.items()}
        block = self.around.blocks[index]
        with quick_attention(hidden.shape[1]):
            output = torch.func.functional_call(block, held, (hidden,), handed)
        return output[0] if isinstance(output, tuple) else output

    def output_weight(self) -> Tensor:
        """The matrix that turns normed hidden states into logits: ``[vocab_size, hidden_size]``."""
        return self.checkpoint.tensor(self.checkpoint.output_name).to(self.device, self.dtype)

    @torch.no_grad()
    def negative_log_likelihood(self, states: HiddenStates, token_ids: Tensor) -> Tensor:
        """Per-token loss in nats, float32 ``[windows, seqlen - 1]``, from the last hidden states.

        Logits exist for a few tokens at a time; the token that opens a window is not predicted.
        """
        output = self.output_weight()
        losses = [
            self.window_losses(states.chunk(number), chunk, output)
            for number, chunk in enumerate(token_ids.split(CHUNK_WINDOWS))
        ]
        return torch.cat(losses)

    def window_losses(self, hidden: Tensor, token_ids: Tensor, output: Tensor) -> Tensor:
        """The same of a few windows, from their last hidden states ``[windows, seqlen, d]``."""
        losses = [
            self.token_losses(few.to(self.device), targets.to(self.device), output).cpu()
            for few, targets in predicted(hidden, token_ids)
        ]
        return torch.cat(losses).view(token_ids.shape[0], -1)

    def token_losses(self, hidden: Tensor, targets: Tensor, output: Tensor) -> Tensor:
        """Loss in nats of each of a few tokens, float32 ``[tokens]``, from ``[tokens, d]``."""
        logits = self.token_logits(hidden, output)
        return nn.functional.cross_entropy(logits, targets, reduction="none")

    def token_logits(self, hidden: Tensor, output: Tensor) -> Tensor:
        """Logits of a few tokens in at least float32, ``[tokens, vocab_size]``."""
        logits = self.around.logits(hidden, output)
        return logits if logits.dtype == torch.float64 else logits.float()

    @torch.no_grad()
    def logits(self, token_ids: Tensor) -> Tensor:
        """All logits, ``[windows, seqlen, vocab_size]``: for short inputs only."""
        hidden = self.embed(token_ids)
        for block in self.blocks():
            hidden = block.run(hidden)
        return self.around.logits(hidden, self.output_weight())

    def check(self, token_ids: Tensor, first: int = 0) -> None:
        """Raise InvalidInput for windows that this model cannot take (see :meth:`embed`)."""
        vocab_size = self.checkpoint.shape.vocab_size
        highest = int(token_ids.max())
        if highest >= vocab_size:
            raise InvalidInput(
                f"token id {highest} is above the model's vocabulary of {vocab_size}; "
                "the tokenizer does not belong to this model"
            )
        longest, seqlen = self.around.longest, first + token_ids.shape[1]
        if longest is not None and seqlen > longest:
            raise InvalidInput(
                f"seqlen {seqlen} is longer than the model's max_position_embeddings {longest}"
            )

    def _hook(self, module: nn.Module, seen: Activations) -> list[Any]:
        """Catch the observed tensors of one forward pass, flattened to ``[tokens, width]``."""
        handles = []
        held = dict(module.named_modules())
        changed = ADDED if self.checkpoint.family.adds_in_place else ()
        for name, (part, side) in self._observed.items():
            if (target := held.get(part)) is None:
                continue
            if side.startswith("input"):
                place = int(side.partition(".")[2] or 0)
                handles.append(target.register_forward_pre_hook(_input_hook(name, seen, place)))
            else:
                hook = _output_hook(name, seen, name in changed)
                handles.append(target.register_forward_hook(hook))
        return handles


def predicted(hidden: Tensor, token_ids: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Hidden states ``[tokens, d]`` and the tokens they predict, a few at a time."""
    before = hidden[:, :-1].reshape(-1, hidden.shape[-1])
    targets = token_ids[:, 1:].reshape(-1)
    yield from zip(before.split(HEAD_TOKENS), targets.split(HEAD_TOKENS), strict=True)


def _input_hook(name: str, seen: Activations, place: int) -> Callable[..., None]:
    def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen[name] = inputs[place].detach().flatten(0, -2)

    return hook


def _output_hook(name: str, seen: Activations, copied: bool) -> Callable[..., None]:
    def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
        # An FFN may give its router's scores too.
        given: Tensor = output[0] if isinstance(output, tuple) else output
        flat = given.detach().flatten(0, -2)
        seen[name] = flat.clone() if copied else flat

    return hook
