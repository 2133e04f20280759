"""The difference of two records under one protocol, as ``bipline diff`` tells it."""

from __future__ import annotations

from typing import Literal

from bipline.values.differences import check_comparable, paired_differences
from bipline.values.figures import Figure, figures_of
from bipline.values.frozen import Frozen
from bipline.values.paired import PairedDifference
from bipline.values.record import EvaluationRecord
from bipline.values.side_by_side import change_text, paired_name

SCHEMA_VERSION: Literal[1] = 1


class FigureDifference(Frozen):
    """A figure of both, and the change as tables tell it.

    ``paired`` is over their windows or rows, None where they do not pair.
    """

    before: float
    after: float
    change: str
    paired: PairedDifference | None = None


class RecordDifference(Frozen):
    """Two models by their tensors, the protocol of both, and their figures by name."""

    schema_version: Literal[1] = SCHEMA_VERSION
    before: str
    after: str
    protocol_digest: str
    figures: dict[str, FigureDifference]

    @classmethod
    def of(cls, before: EvaluationRecord, after: EvaluationRecord) -> RecordDifference:
        """Of the figures that both have. Raises Refused for records that do not compare."""
        check_comparable(before, after)
        one, other = figures_of(before), figures_of(after)
        pairs = paired_differences(before, after)
        return cls(
            before=before.tensor_digest,
            after=after.tensor_digest,
            protocol_digest=before.protocol_digest,
            figures={
                name: _difference(one[name], other[name], pairs.get(paired_name(name)))
                for name in one
                if name in other
            },
        )  # fmt: skip


def _difference(before: Figure, after: Figure, paired: PairedDifference | None) -> FigureDifference:
    change = change_text(before, after, paired)
    return FigureDifference(before=before.value, after=after.value, change=change, paired=paired)
