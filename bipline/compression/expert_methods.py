"""Which methods know the experts of a mixture: their files say ``EXPERTS = True``.

Allocations that know channels of every expert say ``EXPERT_CHANNELS = True`` too; a criterion that
scores single groups and experts scores these channels with them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

WHOLE, CHANNELS = "EXPERTS", "EXPERT_CHANNELS"


def knowing_experts(
    names: Iterable[str], load: Callable[[str], object], of_them: str = WHOLE
) -> list[str]:
    """Those methods of these names that know experts; ``load`` gives the file of one."""
    return [name for name in sorted(names) if getattr(load(name), of_them, False)]
