"""What ``dtype: auto`` chose, and what it was chosen by."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from bipline.values.frozen import Frozen

TriedDtype = Literal["float32", "bfloat16"]


class DtypeChoice(Frozen):
    """The dtype that windows are run in.

    ``rates`` are operations a second of one product of the model, by dtype. ``kept`` is, by kind of
    group, the share of what float32 keeps that bfloat16 keeps too; empty where that was not tried.
    """

    dtype: TriedDtype
    rates: dict[str, float]
    kept: dict[str, float] = Field(default_factory=dict)

    @property
    def quicker(self) -> float:
        """How many times as quick bfloat16's product is as float32's."""
        return self.rates["bfloat16"] / self.rates["float32"]

    @property
    def told(self) -> str:
        """The choice alone, as a plan tells it: nothing in it differs from one measurement to
        the next.
        """
        return f"dtype auto: windows were run in {self.dtype}"

    @property
    def reason(self) -> str:
        """The choice and why, in a line."""
        text = f"dtype auto: {self.dtype}; bfloat16 takes products {self.quicker:.1f} times as fast"
        shares = ", ".join(f"{100 * share:.2f} % of {kind}" for kind, share in self.kept.items())
        return f"{text}; of what float32 keeps it keeps {shares}" if shares else text
