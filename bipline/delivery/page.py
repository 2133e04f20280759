"""The page that both reports are: parts in a row, in one self-contained HTML file.

A part gives an HTML fragment of what it is about, so it can be shown elsewhere. The page needs no
script and loads nothing. Names from outside are escaped by the template, and the same contents
give the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Generic, TypeVar

from markupsafe import Markup

Subject = TypeVar("Subject")
TEMPLATE = "page.html.j2"
Rows = Iterable[Sequence[Any]]


@dataclass(frozen=True)
class Part(Generic[Subject]):
    """A part of a report: where it is linked to, its title, and what gives its lead and body."""

    identifier: str
    title: str
    content: Callable[[Subject], tuple[str, Markup]]

    def html(self, subject: Subject) -> Markup:
        """The part's fragment about a subject."""
        return _macro("part", self.identifier, self.title, *self.content(subject))


def render_page(title: str, subtitle: str, parts: Iterable[Part[Subject]], subject: Subject) -> str:
    """The whole page about a subject."""
    return str(_macro("page", title, subtitle, [(part, part.html(subject)) for part in parts]))


def table(rows: Rows, head: Sequence[str] = (), numeric: bool = False) -> Markup:
    """A table; in a ``numeric`` one all columns but the first are aligned to the right."""
    return _macro("table", head, list(rows), numeric)


def tiles(items: Iterable[tuple[str, str, str]]) -> Markup:
    """Figures to see first: a name, a value and a note each."""
    return _macro("tiles", list(items))


def details(title: str, body: Markup, opened: bool = False) -> Markup:
    """What unfolds under a title."""
    return _macro("details", title, body, opened)


def figure(
    title: str, caption: str, picture: Markup, legend: Sequence[tuple[Markup, str]] = ()
) -> Markup:
    """A picture with its caption, and a legend of swatches and names."""
    return _macro("figure", title, caption, picture, legend)


def swatch(look: str) -> Markup:
    """A little square for a legend: ``kept``, ``removed`` or ``dense``."""
    return Markup('<span class="swatch {}-swatch"></span>').format(look)


def joined(fragments: Iterable[Markup], around: str = "") -> Markup:
    """Fragments below each other, or in one ``div`` of the class ``around``."""
    together = Markup("\n").join(fragments)
    return Markup('<div class="{}">{}</div>').format(around, together) if around else together


def flat(value: Mapping[str, Any], prefix: str = "") -> list[list[Any]]:
    """Nested values as rows of a dotted name and a text."""
    rows: list[list[Any]] = []
    for key, part in value.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        rows += flat(part, name) if isinstance(part, Mapping) else [[name, plain(part)]]
    return rows


def plain(value: Any) -> str:
    """A value as a reader writes it: strings bare, floats short, the rest as JSON."""
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def code(text: str) -> Markup:
    """A digest, in letters of one width."""
    return Markup("<code>{}</code>").format(text)


def _macro(name: str, *arguments: Any) -> Markup:
    fragment: Markup = getattr(_macros(), name)(*arguments)
    return fragment


@cache
def _macros() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    return environment.get_template(TEMPLATE).module
