"""What lies around a decoder's blocks, by transformers' own code: from tokens to logits.

transformers' decoder runs with stand-ins for its blocks. What it hands to them is what a resident
block is run with; what reaches the first one are the embedded tokens; what it makes of what the
last one gives are the logits. So whatever a family does there (scales, caps, kinds of positions
and of masks, block by block) is followed, and none of it is written down a second time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from bipline.model.block_reader import Weights
from bipline.model.built import build
from bipline.model.families import family_of
from bipline.model.unfused import unfuse

# Shapes of windows whose masks and positions are kept: a pass has at most a few.
KEPT_SHAPES = 4

Handed = dict[str, Any]


class _StandIn(nn.Module):
    """In place of a block: keeps what it is handed, and gives no tokens, or what it is told to."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        # Not registered, so that the block's weights are none of the decoder's.
        object.__setattr__(self, "block", block)
        self.entered: Tensor | None = None
        self.handed: Handed = {}
        self.gives: Tensor | None = None

    def forward(self, hidden_states: Tensor, **handed: Any) -> Tensor:
        """No tokens, of which the rest of the decoder makes nothing, unless told otherwise."""
        self.entered, self.handed = hidden_states, handed
        return hidden_states[:, :0] if self.gives is None else self.gives

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
        decoder = self._model.get_decoder()
        self.config = decoder.config
        self.blocks: list[nn.Module] = list(decoder.layers)
        for block in self.blocks:
            unfuse(block, family_of(str(config["model_type"])).fused)
        self._stand_ins = [_StandIn(block) for block in self.blocks]
        decoder.layers = nn.ModuleList(self._stand_ins)
        embedding = decoder.get_input_embeddings()
        # Rows are numbered anew where they are looked up.
        embedding.padding_idx = None
        [name] = [name for name, each in self._model.named_modules() if each is embedding]
        self._embedding = f"{name}.weight"
        self._fill_buffers(device)
        held = {name: weight.to(device, dtype) for name, weight in weights.items()}
        self._model.load_state_dict(held, strict=False, assign=True)
        self._handed: dict[tuple[int, ...], list[Handed]] = {}

    @torch.no_grad()
    def embedded(self, rows: Tensor, places: Tensor) -> Tensor:
        """What enters the first block, ``[windows, seqlen, hidden_size]``.

        ``rows`` are those of the embedding that are needed, ``places`` the row of each token.
        """
        held = {self._embedding: rows}
        output = self._model.get_output_embeddings()
        if output.bias is not None:
            # A tied output matrix has as many rows as are given, and a bias must fit it.
            count = len(rows) if self.config.tie_word_embeddings else len(output.bias)
            held["lm_head.bias"] = rows.new_zeros(count)
        _, entered = self._run(held, input_ids=places)
        return entered

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
            found, _ = self._run(
                {"lm_head.weight": output}, inputs_embeds=_blank(last.gives[:, :1])
            )
        finally:
            last.gives = None
        logits: Tensor = found.logits
        return logits.view(*hidden.shape[:-1], -1)

    def _record(self, hidden: Tensor, past: _Past | None) -> list[Handed]:
        self._run({}, inputs_embeds=_blank(hidden), past_key_values=past)
        return [stand_in.handed for stand_in in self._stand_ins]

    def _run(self, held: Weights, **given: Any) -> tuple[Any, Tensor]:
        """What the model makes of it with these weights, and what enters its first block."""
        found = torch.func.functional_call(self._model, held, (), {**given, "use_cache": False})
        entered, *_ = [each.entered for each in self._stand_ins]
        for each in self._stand_ins:
            each.entered = None
        if entered is None:
            raise ValueError("the decoder ran without its first block")
        return found, entered

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
