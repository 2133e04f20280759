"""Collecting: what the windows that are fitted on show of one block.

Moments of o_proj's inputs come with the dense stream's pass through the block. Those of
down_proj's are taken afterwards, when attention is fixed.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from bipline.compression.compensation.moments import Moments, MomentSums
from bipline.compression.compensation.norms_behind import HeadShares, drift_of, weights_of
from bipline.compression.compensation.streams import Batch, Seen
from bipline.compression.criteria import llm_bip_glu
from bipline.compression.criteria.interface import Block, Sums, Tokens
from bipline.compression.criteria.norms import NO_NORM, RmsNorm
from bipline.model.checkpoint import widened
from bipline.model.halves import Halves


class Collector:
    """Moments of one matrix's inputs, ``name``, as ``dense`` makes them; until they are given up.

    With ``weighed``, the dense block, the importance of hidden channels is collected beside them.
    Without ``token_weights`` every token counts alike. ``norm`` lies behind the matrix; ``heads``
    are told of queries and keys.
    """

    def __init__(
        self,
        dense: Halves,
        name: str,
        sequential: bool,
        weighed: Block | None = None,
        token_weights: bool = True,
        norm: RmsNorm = NO_NORM,
        heads: HeadShares | None = None,
    ) -> None:
        self._token_weights, self._norm, self._heads = token_weights, norm, heads
        self._dense, self._name, self._sequential, self._weighed = dense, name, sequential, weighed
        self._gains: Sums = {}
        weight = dense.weights[f"{name}.weight"]
        outputs, columns = weight.shape
        products = torch.promote_types(weight.dtype, torch.float32)
        drift = outputs if sequential else 0
        self._sums = MomentSums(columns, drift, weight.device, products)

    def see(self, seen: Seen) -> None:
        """Take up o_proj's inputs of a micro-batch, and what its dense stream says of channels."""
        self._add_gains(seen)
        self.see_attention(seen)

    def see_attention(self, seen: Seen) -> None:
        """The same for o_proj's moments alone."""
        inputs = seen.widths["attention_output"]
        if self._heads is not None:
            self._heads.add(*map(_flat, self._dense.queries_and_keys(seen.stream)))
        if self._sequential:
            inputs = self._dense.attention_output(seen.stream)
        self._add(inputs, seen.stream, seen.residual)

    def take(self, batches: Iterable[Batch]) -> None:
        """Take up the matrix's inputs from what enters its half and what should leave it."""
        for batch in batches:
            inputs = self._dense.matrix_inputs(self._name, batch.reads)
            self._add(inputs, batch.adds_to, batch.target)

    def moments(self, centred: bool) -> Moments:
        """The moments so far; valid until more inputs are taken up."""
        return self._sums.moments(self._dense.index, centred)

    def importance(self) -> Tensor | None:
        """D's diagonal for o_proj, ``[d]``: squares of llm-bip-glu's propagated weight.

        None where nothing was to be weighed, or there is no FFN that a change could reach.
        """
        if self._weighed is None or not self._gains:
            return None
        return llm_bip_glu.propagated_weight(self._gains, self._weighed).square()

    def _add(self, inputs: Tensor, residual: Tensor, target: Tensor) -> None:
        """Add inputs of the matrix, which adds to ``residual`` what should make ``target``."""
        drift, weights = None, self._weights(target)
        if self._sequential or self._norm.gain is not None:
            gives = self._dense.project(self._name, inputs)
            projected = _flat(gives)
            if self._sequential:
                ahead = target - (residual + self._dense.added(self._name, gives))
                drift = drift_of(self._norm, projected, _flat(ahead))
            if self._token_weights:
                weights = weights_of(self._norm, projected, weights)
        self._sums.add(_flat(inputs), weights, drift)

    def _weights(self, target: Tensor) -> Tensor:
        if not self._token_weights:
            return target.new_ones(target.shape[:2].numel())
        return token_weights(_flat(target), self._dense.rms_norm_eps)

    def _add_gains(self, seen: Seen) -> None:
        if self._weighed is None or "up" not in seen.widths:
            return
        # The criterion's other sums are of o_proj's inputs; what it needs of them is not used.
        absent = dict.fromkeys(("attention_output", "attention_projected"), seen.residual)
        named = {**absent, **seen.widths, "hidden": seen.hidden, "residual": seen.residual}
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
