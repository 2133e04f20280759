"""Errors of versions of a block on the windows that nothing was fitted on.

The block's output is held to the dense model's, both behind an RMSNorm, as whatever follows reads
them. For o_proj that is the output behind the dense FFN; both sublayers together are held to the
block that is not corrected at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import linear

from bipline.compression.compensation.candidates import Candidate
from bipline.compression.compensation.streams import Batch, Streams
from bipline.model.checkpoint import widened
from bipline.model.halves import DOWN_PROJ, O_PROJ, Halves
from bipline.model.mixture import product

Outputs = Callable[[Batch], Iterable[Tensor]]


class HeldOut:
    """Errors of one block's versions; see :class:`SublayerRecord` for what an error is."""

    def __init__(self, streams: Streams, dense: Halves) -> None:
        self.streams, self._dense = streams, dense
        streams.advance_dense(dense)

    def block_error(self, version: Halves) -> float:
        """Error of the whole block."""
        return self._errors(lambda batch: [version.run(batch.reads)])[0]

    def attention_errors(self, reader: Halves, versions: Sequence[Candidate]) -> list[float]:
        """Errors of versions of o_proj behind what ``reader`` gives them, with the dense FFN."""

        def outputs(batch: Batch) -> Iterable[Tensor]:
            inputs = reader.attention_output(batch.reads)
            for version in versions:
                added = self._dense.added(O_PROJ, applied(version, inputs))
                yield self._dense.after_ffn(batch.adds_to + added, batch.reads)

        return self._errors(outputs)

    def ffn_errors(self, reader: Halves, versions: Sequence[Candidate]) -> list[float]:
        """Errors of versions of down_proj behind what ``reader`` gives them.

        It reads what the streams' attention half left between.
        """

        def outputs(batch: Batch) -> Iterable[Tensor]:
            inputs = reader.ffn_activation(batch.reads)
            for version in versions:
                yield batch.adds_to + self._dense.added(DOWN_PROJ, applied(version, inputs))

        return self._errors(outputs, between=True)

    def expert_errors(self, reader: Halves, versions: Sequence[Candidate]) -> list[float]:
        """Errors of versions of the wide matrix behind the experts of ``reader``.

        It reads what the streams' attention half left between.
        """
        mixture = reader.mixture

        def outputs(batch: Batch) -> Iterable[Tensor]:
            hidden = reader.ffn_input(batch.reads).flatten(0, 1)
            parts = list(mixture.parts(hidden))
            for version in versions:
                given = product(parts, version.weight.to(hidden), len(hidden))
                yield batch.adds_to + given.view_as(batch.reads)

        return self._errors(outputs, between=True)

    def _errors(self, outputs: Outputs, between: bool = False) -> list[float]:
        totals: list[float] = []
        eps = self._dense.rms_norm_eps
        for batch in self.streams.batches(between):
            squares = [difference(version, batch.target, eps) for version in outputs(batch)]
            totals = [a + b for a, b in zip(totals or [0.0] * len(squares), squares, strict=True)]
        return [total / self.streams.tokens for total in totals]


def difference(version: Tensor, target: Tensor, eps: float) -> float:
    """Sum over tokens of the mean square difference of two streams behind an RMSNorm.

    A plain mean square goes by scale too, which no reader of the stream sees: least squares and
    above all biases look better by it than they are.
    """
    pair = [
        stream * (stream.square().mean(-1, keepdim=True) + eps).rsqrt()
        for stream in map(widened, (version, target))
    ]
    return float((pair[0] - pair[1]).square().mean(-1).sum(dtype=torch.float64))


def applied(version: Candidate, inputs: Tensor) -> Tensor:
    """What a version of a matrix makes of all its inputs: ``[..., n] -> [..., d]``."""
    bias = None if version.bias is None else version.bias.to(inputs)
    return linear(inputs[..., version.columns], version.weight.to(inputs), bias)
