"""What lies around a decoder's blocks, by transformers' own code: from tokens to logits.

transformers' decoder runs with stand-ins for its blocks. What it hands to them is what a resident
block is run with; what reaches the first one are the embedded tokens; what it makes of what the
last one gives are the logits. So whatever a family does there (scales, caps, kinds of positions
and of masks, block by block) is followed, and none of it is written down a second time.
"""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from bipline.model.block_reader import Weights
from bipline.model.built import build
from bipline.model.families import block_lying, build_of, family_in
from bipline.model.unfused import unfuse

# Shapes of windows whose masks and positions are kept: a pass has at most a few.
KEPT_SHAPES = 4

Handed = dict[str, Any]


class _Passed(Exception):
    """Every block was handed its part; what lies behind the last one need not run."""


class _StandIn(nn.Module):
    """In place of a block: keeps what it is handed, and gives that on, or what it is told to."""

    def __init__(self, block: nn.Module, gives_tuple: bool) -> None:
        super().__init__()
        # Not registered, so that the block's weights are none of the decoder's.
        object.__setattr__(self, "block", block)
        self.entered: Tensor | None = None
        self.handed: Handed = {}
        self.gives: Tensor | None = None
        self.is_last = False
        self._gives_tuple = gives_tuple
        # What a decoder hands over by place, by the names that its blocks have for it.
        self._names = list(signature(type(block).forward).parameters)[2:]

    def forward(self, hidden_states: Tensor, *placed: Any, **handed: Any) -> Any:
        """What entered, or what it is told to give; of the last one, no more than that it ran."""
        named = dict(zip(self._names, placed, strict=False))
        self.entered, self.handed = hidden_states, {**named, **handed}
        if self.is_last and self.gives is None:
            raise _Passed
        given = hidden_states if self.gives is None else self.gives
        return (given, None) if self._gives_tuple else given

    def __getattr__(self, name: str) -> Any:
        """What a decoder reads of its blocks: their kind, say."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.block, name)


class _Past(DynamicCache):
    """A cache of so many tokens that holds none."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self._tokens = tokens

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._tokens

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return self._tokens

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return self._tokens + query_length, 0


class Surroundings:
    """transformers' model of a config without weights, and its own code around its blocks.

    ``weights`` are those beside embedding and blocks, by their full names. ``blocks`` are
    transformers' own, on the meta device, with each matrix of their build by itself.
    """

    def __init__(
        self, config: Mapping[str, Any], weights: Weights, dtype: torch.dtype, device: torch.device
    ) -> None:
        with torch.device("meta"):
            self._model = build(config, dtype).eval()
        self.config, family = self._model.config, family_in(config)
        place, _, local = build_of(family).block_prefix.removesuffix(".{index}.").rpartition(".")
        decoder = self._model.get_submodule(place)
        self.blocks: list[nn.Module] = list(getattr(decoder, local))
        for index, block in enumerate(self.blocks):
            unfuse(block, family.fused, block_lying(family, config, index))
        self._stand_ins = [_StandIn(block, family.gives_tuple) for block in self.blocks]
        self._stand_ins[-1].is_last = True
        setattr(decoder, local, nn.ModuleList(self._stand_ins))
        embedding = self._model.get_input_embeddings()
        # Rows are numbered anew where they are looked up.
        embedding.padding_idx = None
        [name] = [name for name, each in self._model.named_modules() if each is embedding]
        self._embedding = f"{name}.weight"
        self._fill_buffers(device)
        held = {name: weight.to(device, dtype) for name, weight in weights.items()}
        self._model.load_state_dict(held, strict=False, assign=True)
        self._handed: dict[tuple[int, ...], list[Handed]] = {}

    @property
    def longest(self) -> int | None:
        """Positions that the model knows; None where they have no end."""
        return getattr(self.config, "max_position_embeddings", None)

    @torch.no_grad()
    def embedded(self, rows: Tensor, places: Tensor, first: int = 0) -> Tensor:
        """What enters the first block, ``[windows, seqlen, hidden_size]``.

        ``rows`` are those of the embedding that are needed, ``places`` the row of each token; the
        ``first`` of these has so many before it.
        """
        past = _Past(first) if first else None
        return self._passed({self._embedding: rows}, input_ids=places, past_key_values=past)

    @torch.no_grad()
    def handed(
        self, index: int, hidden: Tensor, cache: DynamicCache | None = None, first: int = 0
    ) -> Handed:
        """What the decoder hands to a block beside ``hidden``: the tokens from ``first`` on."""
        key = (*hidden.shape[:2], -1 if cache is None else first)
        if key not in self._handed:
            while len(self._handed) >= KEPT_SHAPES:
                del self._handed[next(iter(self._handed))]
            self._handed[key] = self._record(hidden, None if cache is None else _Past(first))
        found = self._handed[key][index]
        if cache is None:
            return found
        return {name: cache if isinstance(v, _Past) else v for name, v in found.items()}

    def set_in_blocks(self, name: str, value: float) -> None:
        """Give a number that every block has another value."""
        for block in self.blocks:
            if not isinstance(getattr(block, name), float | int):
                raise ValueError(f"{name} of a block is no number")
            setattr(block, name, value)

    def logits(self, hidden: Tensor, output: Tensor) -> Tensor:
        """Logits of what leaves the last block: ``[..., seqlen, hidden_size]`` to vocab_size."""
        last = self._stand_ins[-1]
        last.gives = hidden if hidden.dim() > 2 else hidden[None]
        try:
            held = {"lm_head.weight": output}
            found = self._run(held, inputs_embeds=_blank(last.gives[:, :1]))
        finally:
            last.gives = None
            self._forget()
        logits: Tensor = found.logits
        return logits.view(*hidden.shape[:-1], -1)

    def _record(self, hidden: Tensor, past: _Past | None) -> list[Handed]:
        self._passed({}, inputs_embeds=_blank(hidden), past_key_values=past)
        return [stand_in.handed for stand_in in self._stand_ins]

    def _passed(self, held: Weights, **given: Any) -> Tensor:
        """What enters the first block with these weights, when all were handed their part."""
        try:
            self._run(held, **given)
        except _Passed:
            entered = self._stand_ins[0].entered
        else:
            raise ValueError("the decoder ran without its last block")
        finally:
            self._forget()
        if entered is None:
            raise ValueError("the decoder ran without its first block")
        return entered

    def _run(self, held: Weights, **given: Any) -> Any:
        """What the model makes of it with these weights."""
        return torch.func.functional_call(self._model, held, (), {**given, "use_cache": False})

    def _forget(self) -> None:
        for each in self._stand_ins:
            each.entered = None

    @torch.no_grad()
    def _fill_buffers(self, device: torch.device) -> None:
        """Compute what is no weight and in no file, as transformers does when it loads a model."""
        for module in self._model.modules():
            empty = {n: b for n, b in module._buffers.items() if b is not None and b.is_meta}
            for name, buffer in empty.items():
                module._buffers[name] = torch.empty_like(buffer, device=device)
            if empty:
                self._model._init_weights(module)


def _blank(hidden: Tensor) -> Tensor:
    """Something like ``hidden`` for where its values do not count."""
    return hidden.new_zeros(1, 1, 1).expand(hidden.shape)
