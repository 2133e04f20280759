"""What a criterion or an allocation says of itself: its docstring, taken apart for pages and cards.

The first line is ``name``: idea. Paragraphs that are aligned as formulas are formulas, and from
the first paragraph that begins with "Source" or "Established" on, the text says where the method
comes from, what is established and what is a reconstruction. Cards, reports and ``docs/methods``
all speak from here, so a method is described once.
"""

from __future__ import annotations

import importlib
import inspect
import re
from dataclasses import dataclass

from bipline.compression.allocation import ALLOCATIONS, allocation_module
from bipline.compression.criteria import CRITERIA, module_name

ALIGNED = re.compile(r"\S {2,}\S|^ {2,}\S", re.MULTILINE)
STATUS = ("Source", "Established")


@dataclass(frozen=True)
class Paragraph:
    """A paragraph of a description; ``formula`` where its alignment means something."""

    text: str
    formula: bool


@dataclass(frozen=True)
class Description:
    """A criterion or an allocation, described by itself."""

    name: str
    idea: str
    computed: tuple[Paragraph, ...]
    status: tuple[Paragraph, ...]


def criterion_description(name: str) -> Description:
    """A criterion's description. Raises InvalidInput for an unknown one."""
    return description_from(name, importlib.import_module(module_name(name)).__doc__)


def allocation_description(name: str) -> Description:
    """An allocation's description. Raises InvalidInput for an unknown one."""
    return description_from(name, importlib.import_module(allocation_module(name)).__doc__)


def all_descriptions() -> tuple[list[Description], list[Description]]:
    """Those of all criteria and of all allocations, by name."""
    criteria = [criterion_description(name) for name in sorted(CRITERIA)]
    return criteria, [allocation_description(name) for name in sorted(ALLOCATIONS)]


def description_from(name: str, docstring: str | None) -> Description:
    """Take a docstring apart. Raises ValueError where it does not say what a page needs."""
    first, *rest = inspect.cleandoc(docstring or "").split("\n\n")
    label, _, idea = first.partition("``: ")
    if label != f"``{name}" or not idea:
        raise ValueError(f"{name}: its description does not begin with ``{name}``: idea")
    paragraphs = tuple(Paragraph(text, bool(ALIGNED.search(text))) for text in rest)
    cut = next((i for i, each in enumerate(paragraphs) if each.text.startswith(STATUS)), None)
    if cut is None or not any(each.formula for each in paragraphs[:cut]):
        raise ValueError(f"{name}: its description lacks a formula, or its source")
    return Description(name, " ".join(idea.split()), paragraphs[:cut], paragraphs[cut:])
