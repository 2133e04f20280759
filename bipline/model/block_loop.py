"""The block loop: a model runs block by block, and one block is in memory at a time.

Everything that needs the model's forward pass (scoring, perplexity, later gradients and
compensation) goes through this small interface: run block ``i`` on hidden states, observe named
tensors on the way, replace the block's weights. The arithmetic is transformers' own decoder
block, filled with the tensors of one block.

Shapes: token ids and hidden states come in windows, ``[windows, seqlen]`` and
``[windows, seqlen, hidden_size]``; observed tensors come flat, ``[tokens, width]``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bipline.artifacts.errors import InvalidInput
from bipline.model.checkpoint import Checkpoint
from bipline.model.families import build_of

# Windows per chunk: partial sums are taken over chunks of this many windows, in order, so that
# a sum is the same however the work is divided.
CHUNK_WINDOWS = 16

Activations = dict[str, Tensor]
Observer = Callable[[Activations], None]


@dataclass
class Block:
    """The resident block: its weights and how to run it."""

    index: int
    weights: dict[str, Tensor]
    loop: BlockLoop

    def run(self, hidden: Tensor, observe: Observer | None = None) -> Tensor:
        """Run all windows through the block, chunk by chunk.

        ``observe`` is called once per chunk with the named tensors of the family's build, flat:
        ``attention_output`` (input of o_proj), ``residual`` (before the FFN's norm), ``gate`` and
        ``up`` (outputs of gate_proj and up_proj), ``ffn_activation`` (input of down_proj).
        """
        chunks = [
            self.loop.run_chunk(self, hidden[start : start + CHUNK_WINDOWS], observe)
            for start in range(0, len(hidden), CHUNK_WINDOWS)
        ]
        return torch.cat(chunks)

    def replace(self, weights: dict[str, Tensor]) -> None:
        """Replace some of the block's weights, by their names inside the block."""
        self.weights = {**self.weights, **weights}


class BlockLoop:
    """A checkpoint, ready to be run block by block in ``dtype`` on ``device``."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> None:
        self.checkpoint = checkpoint
        self.dtype = dtype
        self.device = torch.device(device)
        self._skeleton = _skeleton(checkpoint.config)
        self._rotary = type(self._skeleton.rotary_emb)(self._skeleton.config).to(self.device)
        self._norm = self._filled(
            self._skeleton.norm, {"weight": checkpoint.tensor("model.norm.weight")}
        )
        self._block = self._skeleton.layers[0]
        self._observed = build_of(checkpoint.family).observed

    def embed(self, token_ids: Tensor) -> Tensor:
        """Hidden states before the first block: ``[windows, seqlen, hidden_size]``.

        Raises InvalidInput for a token id above the vocabulary, or a window longer than the
        positions the model knows or its sliding attention window, which this loop does not cut.
        """
        self._check(token_ids)
        used, where = token_ids.unique(return_inverse=True)
        rows = self.checkpoint.rows("model.embed_tokens.weight", used)
        return rows.to(self.device, self.dtype)[where.to(self.device)]

    def blocks(self) -> Iterator[Block]:
        """The blocks in order. Only the latest one's weights are held here."""
        for index in range(self.checkpoint.shape.num_hidden_layers):
            yield self.block(index)

    def block(self, index: int) -> Block:
        """One block with its weights converted to the loop's dtype and device."""
        weights = self.checkpoint.block_weights(index)
        return Block(index, {n: w.to(self.device, self.dtype) for n, w in weights.items()}, self)

    @torch.no_grad()
    def run_chunk(self, block: Block, hidden: Tensor, observe: Observer | None) -> Tensor:
        """Run one chunk of windows through a block (see :meth:`Block.run`)."""
        module = self._filled(self._block, block.weights)
        seen: Activations = {}
        handles = self._hook(module, seen) if observe else []
        try:
            positions = torch.arange(hidden.shape[1], device=self.device)[None]
            output = module(
                hidden, attention_mask=None, position_embeddings=self._rotary(hidden, positions)
            )
        finally:
            for handle in handles:
                handle.remove()
        if observe:
            observe(seen)
        return output[0] if isinstance(output, tuple) else output

    @torch.no_grad()
    def negative_log_likelihood(self, hidden: Tensor, token_ids: Tensor) -> Tensor:
        """Per-token loss in nats, float32 ``[windows, seqlen - 1]``, from the last hidden states.

        Logits exist for one chunk at a time; the token that opens a window is not predicted.
        """
        output = self.checkpoint.tensor(self.checkpoint.output_name).to(self.device, self.dtype)
        losses = []
        for start in range(0, len(hidden), CHUNK_WINDOWS):
            part = slice(start, start + CHUNK_WINDOWS)
            logits = nn.functional.linear(self._norm(hidden[part]), output)[:, :-1].float()
            targets = token_ids[part, 1:].to(self.device)
            losses.append(nn.functional.cross_entropy(logits.mT, targets, reduction="none"))
        return torch.cat(losses)

    @torch.no_grad()
    def logits(self, token_ids: Tensor) -> Tensor:
        """All logits, ``[windows, seqlen, vocab_size]``: for short inputs only."""
        hidden = self.embed(token_ids)
        for block in self.blocks():
            hidden = block.run(hidden)
        output = self.checkpoint.tensor(self.checkpoint.output_name).to(self.device, self.dtype)
        return nn.functional.linear(self._norm(hidden), output)

    def _filled(self, module: nn.Module, weights: dict[str, Tensor]) -> nn.Module:
        converted = {name: w.to(self.device, self.dtype) for name, w in weights.items()}
        module.load_state_dict(converted, assign=True)
        return module.eval()

    def _hook(self, module: nn.Module, seen: Activations) -> list[Any]:
        """Catch the observed tensors of one forward pass, flattened to ``[tokens, width]``."""
        handles = []
        for name, (place, side) in self._observed.items():
            target = module.get_submodule(place)
            if side == "input":
                handles.append(target.register_forward_pre_hook(_input_hook(name, seen)))
            else:
                handles.append(target.register_forward_hook(_output_hook(name, seen)))
        return handles

    def _check(self, token_ids: Tensor) -> None:
        vocab_size = self.checkpoint.shape.vocab_size
        highest = int(token_ids.max())
        if highest >= vocab_size:
            raise InvalidInput(
                f"token id {highest} is above the model's vocabulary of {vocab_size}; "
                "the tokenizer does not belong to this model"
            )
        for limit in ("max_position_embeddings", "sliding_window"):
            longest = getattr(self._skeleton.config, limit, None)
            if longest is not None and token_ids.shape[1] > longest:
                raise InvalidInput(
                    f"seqlen {token_ids.shape[1]} is longer than the model's {limit} {longest}"
                )


def _input_hook(name: str, seen: Activations) -> Callable[..., None]:
    def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen[name] = inputs[0].detach().flatten(0, 1)

    return hook


def _output_hook(name: str, seen: Activations) -> Callable[..., None]:
    def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        seen[name] = output.detach().flatten(0, 1)

    return hook


def _skeleton(config: dict[str, Any]) -> Any:
    """transformers' model of this family with one block and no weights (meta tensors)."""
    from transformers import AutoConfig, AutoModelForCausalLM

    values = {key: value for key, value in config.items() if key not in ("dtype", "torch_dtype")}
    values.pop("layer_types", None)
    values["num_hidden_layers"] = 1
    single = AutoConfig.for_model(values.pop("model_type"), **values)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(single, attn_implementation="sdpa").model
