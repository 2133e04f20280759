"""What files call the tensors of a decoder, where their class has them under other names.

A decoder that was saved without its head has names without the root of the class that has one
(GPT-2's ``h.0.`` for ``transformer.h.0.``), and some classes are saved under names of before. Such
files are read under the class's names, and what is made of them has theirs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from bipline.model.families import Family, build_of


@dataclass(frozen=True)
class Naming:
    """Which ``root`` names lack where they lie, and those that are ``called`` something else."""

    root: str = ""
    called: Mapping[str, str] = field(default_factory=dict)

    def stored_name(self, name: str) -> str:
        """Where a tensor lies, by its class's name."""
        return self.called.get(name, name.removeprefix(self.root))


def naming_of(family: Family, known: Iterable[str], stored: Collection[str]) -> Naming:
    """How tensors that are ``stored`` are called; ``known`` are the names that the class has."""
    prefix, names = build_of(family).block_prefix, list(known)
    root = f"{prefix.partition('.')[0]}."
    bare = prefix.removeprefix(root).format(index=0)
    rooted = any(name.startswith(root) for name in stored)
    root = "" if rooted or not any(name.startswith(bare) for name in stored) else root
    called = {}
    for name in names:
        module, _, kind = name.rpartition(".")
        found = f"{family.stored.get(module, module)}.{kind}"
        if found in stored and name not in stored:
            called[name] = found
    return Naming(root, called)
