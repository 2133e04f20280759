"""Families: what can be done with the models of each ``model_type``, as a table."""

from __future__ import annotations

from typing import Literal

from bipline.values.frozen import Frozen

SCHEMA_VERSION: Literal[1] = 1


class FamilyRow(Frozen):
    """One family. ``cuts`` are what can go of its blocks; ``also`` the classes of smaller models.

    ``exports`` are what each format makes of a model, by its name; a format that the family has
    not is not there.
    """

    model_type: str
    kind: str
    architecture: str
    cuts: tuple[str, ...]
    layouts: tuple[str, ...]
    also: tuple[str, ...]
    biases_added: bool
    exports: dict[str, tuple[str, ...]]


class Families(Frozen):
    """Every family, by name."""

    schema_version: Literal[1] = SCHEMA_VERSION
    families: tuple[FamilyRow, ...]
