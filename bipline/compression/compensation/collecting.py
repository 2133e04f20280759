"""Collecting: what the windows that are fitted on show of one block.

Moments of o_proj's inputs come with the dense stream's pass through the block. Those of
down_proj's are taken afterwards, when attention is fixed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bipline.compression.compensation.moments import Moments, MomentSums
from bipline.compression.compensation.streams import Seen, Streams
from bipline.compression.criteria import llm_bip_glu
from bipline.compression.criteria.interface import Block, Sums, Tokens, widened
from bipline.model.halves import DOWN_PROJ, O_PROJ, Halves


class Collecting:
    """One block's moments, for the matrices ``wanted``, and the importance of hidden channels.

    The importance is collected where ``weighed`` says whose block it is of.
    """

    def __init__(
        self, dense: Halves, wanted: frozenset[str], sequential: bool, weighed: Block | None
    ) -> None:
        self._dense, self._sequential, self._weighed = dense, sequential, weighed
        self._index = dense.index
        self._gains: Sums = {}
        self._wanted = wanted
        self._sums: dict[str, MomentSums] = {}

    def _sums_of(self, name: str) -> MomentSums:
        """Made when the first inputs come, so that both matrices' need not be there at a time."""
        if name not in self._sums:
            weight = self._dense.weights[f"{name}.weight"]
            outputs, columns = weight.shape
            products = torch.promote_types(weight.dtype, torch.float32)
            drift = outputs if self._sequential else 0
            self._sums[name] = MomentSums(columns, drift, weight.device, products)
        return self._sums[name]

    def see(self, seen: Seen) -> None:
        """Take up a micro-batch of the dense stream and of the other stream beside it."""
        self._add_gains(seen)
        self.see_attention(seen)

    def see_attention(self, seen: Seen) -> None:
        """The same for o_proj's moments alone."""
        if O_PROJ not in self._wanted:
            return
        inputs = seen.widths["attention_output"]
        if self._sequential:
            inputs = self._dense.attention_output(seen.stream)
        self._add(O_PROJ, inputs, seen.stream, seen.residual)

    def see_ffn(self, streams: Streams, before: Halves) -> None:
        """Take up down_proj's inputs behind the attention half of ``before``."""
        if DOWN_PROJ not in self._wanted:
            return
        for stream, target in streams.pairs():
            residual = before.after_attention(stream)
            self._add(DOWN_PROJ, self._dense.ffn_activation(residual), residual, target)

    def moments(self, name: str, centred: bool) -> Moments:
        """The moments of one matrix's inputs so far; valid until more are taken up."""
        return self._sums[name].moments(self._index, centred)

    def forget(self, name: str) -> None:
        """Give up the moments of one matrix."""
        del self._sums[name]

    def importance(self) -> Tensor | None:
        """D's diagonal for o_proj, ``[d]``: squares of llm-bip-glu's propagated weight.

        None where nothing was to be weighed, or there is no FFN that a change could reach.
        """
        if self._weighed is None or not self._gains:
            return None
        return llm_bip_glu.propagated_weight(self._gains, self._weighed).square()

    def _add(self, name: str, inputs: Tensor, residual: Tensor, target: Tensor) -> None:
        """Add a matrix's inputs; it adds to ``residual`` what should make ``target``."""
        drift = None
        if self._sequential:
            drift = _flat(target - (residual + self._dense.project(name, inputs)))
        self._sums_of(name).add(_flat(inputs), self._weights(target), drift)

    def _weights(self, target: Tensor) -> Tensor:
        return token_weights(_flat(target), self._dense.rms_norm_eps)

    def _add_gains(self, seen: Seen) -> None:
        if self._weighed is None or "gate" not in seen.widths:
            return
        # The criterion's other sums are of o_proj's inputs; what it needs of them is not used.
        named = {"attention_output": seen.residual, **seen.widths, "residual": seen.residual}
        tokens = Tokens({name: _flat(value) for name, value in named.items()}, seen.hidden.shape[1])
        sums = llm_bip_glu.observe(self._weighed, tokens, llm_bip_glu.OPTIONS())
        for name, value in sums.items():
            value = value.to(seen.hidden.device)
            self._gains[name] = self._gains[name] + value if name in self._gains else value


def token_weights(target: Tensor, eps: float) -> Tensor:
    """How much each token counts, ``[tokens]``: 1 / mean square of the dense residual stream.

    ``target`` is that stream, ``[tokens, hidden_size]``.

    Whatever reads the stream does so behind an RMSNorm, so an error counts by its share of it.
    """
    return (widened(target).square().mean(1) + eps).reciprocal()


def _flat(values: Tensor) -> Tensor:
    return values.flatten(0, 1)
