"""Which methods know the experts of a mixture: their files say ``EXPERTS = True``."""

from __future__ import annotations

from collections.abc import Callable, Iterable


def knowing_experts(names: Iterable[str], load: Callable[[str], object]) -> list[str]:
    """Those methods of these names that know experts; ``load`` gives the file of one."""
    return [name for name in sorted(names) if getattr(load(name), "EXPERTS", False)]
