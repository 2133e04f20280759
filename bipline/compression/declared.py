"""What methods declare that they can do: their files say ``EXPERTS = True`` and the like."""

from __future__ import annotations

from collections.abc import Callable, Iterable


def declaring(what: str, names: Iterable[str], load: Callable[[str], object]) -> list[str]:
    """Those methods of these names whose files say so; ``load`` gives the file of one."""
    return [name for name in sorted(names) if getattr(load(name), what, False)]
