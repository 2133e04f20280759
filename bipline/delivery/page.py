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

from bipline.delivery.axes import Axis, axis_around, number_text
from bipline.values.figures import TIMES

Subject = TypeVar("Subject")
TEMPLATE = "page.html.j2"
# Where a page takes up what only a run knows; no text from outside can hold it unescaped.
RUN_MARK = "<!--run-->"
# A table with more is too long as a list of its rows.
MOST_COLUMNS = 6
# One with more than these is printed on a sheet that lies on its side.
UPRIGHT_COLUMNS = 10
# Bars end before their axis, whose last value is written around its place.
ROOM = 1.06
Rows = Iterable[Sequence[Any]]


@dataclass(frozen=True)
class Lane:
    """A row of :func:`lanes`: a value between ``low`` and ``high``, told by ``text``.

    It is a bar from zero where lengths are compared, else a mark.
    """

    name: str
    low: float
    value: float
    high: float
    text: str
    bar: bool = False


@dataclass(frozen=True)
class Part(Generic[Subject]):
    """A part of a report: where it is linked to, its title, and what gives its lead and body."""

    identifier: str
    title: str
    content: Callable[[Subject], tuple[str, Markup]]

    def html(self, subject: Subject) -> Markup:
        """The part's fragment about a subject."""
        return _macro("part", self.identifier, self.title, *self.content(subject))


def render_page(
    title: str,
    subtitle: str,
    parts: Iterable[Part[Subject]],
    subject: Subject,
    facts: Iterable[tuple[str, str]] = (),
) -> str:
    """The whole page about a subject; ``facts`` are names and values for the line of its title."""
    shown = [(part, part.html(subject)) for part in parts]
    return str(_macro("page", title, subtitle, list(facts), shown))


def is_titled(page: str, title: str) -> bool:
    """Whether a text is a page whose title begins with these words."""
    return page.startswith("<!") and f"<title>{title} " in page


def told_of_run(page: str, facts: Iterable[tuple[str, str, str]]) -> str:
    """A finished page with what only a run knows in the line of its title.

    Each fact is a name, a value and an address, or none. What a digest covers tells no time, run
    or verdict, so this is for copies beside it.
    """
    lines = "\n".join(_macro("fact", *fact) for fact in facts)
    return page.replace(RUN_MARK, f"{lines}\n{RUN_MARK}", 1)


def table(rows: Rows, head: Sequence[str] = (), numeric: bool = False, caption: str = "") -> Markup:
    """A table; in a ``numeric`` one all columns but the first are aligned to the right.

    On a narrow page a row becomes a list, so it is read without scrolling; a numeric one with
    many columns is scrolled instead, beside its first column.
    """
    look = ("wide" if len(head) > MOST_COLUMNS else "numeric") if numeric else "pairs"
    look += " turned" if numeric and len(head) > UPRIGHT_COLUMNS else ""
    cells = [[cell if isinstance(cell, Markup) else _unbroken(str(cell)) for cell in row]
             for row in rows]  # fmt: skip
    return _macro("table", head, cells, look, caption)


def _unbroken(text: str) -> str:
    """A number, its error and its unit stay in one line: blanks between them do not break."""
    for blank in (" %", " ± ", f"{TIMES} "):
        text = text.replace(blank, blank.replace(" ", "\N{NO-BREAK SPACE}"))
    return text


def lanes(caption: str, rows: Sequence[Lane], unit: str) -> Markup:
    """A picture made of text: a row a value, with its interval on one axis for all of them."""
    values = [value for row in rows for value in (row.low, row.value, row.high)]
    bars = any(row.bar for row in rows)
    axis = Axis(0.0, ROOM * max(*values, 0.0) or 1.0, False) if bars else axis_around(values)
    scale = f"{unit}, logarithmic" if axis.logarithmic else unit
    ticks = [(_place(axis, tick), number_text(tick)) for tick in axis.ticks(3)]
    return _macro("lanes", caption, [_drawn(axis, row) for row in rows], ticks, scale)


def _drawn(axis: Axis, row: Lane) -> dict[str, Any]:
    low, high = (100 * axis.share(value) for value in (row.low, row.high))
    reach = (f"{low:.2f}", f"{high - low:.2f}") if row.high > row.low else None
    place = _place(axis, row.value)
    return {"name": row.name, "text": row.text, "bar": row.bar, "place": place, "reach": reach}


def _place(axis: Axis, value: float) -> str:
    return f"{100 * axis.share(value):.2f}"


def texts(lead: str, columns: Iterable[tuple[str, str]]) -> Markup:
    """Texts beside each other, each under its name."""
    return _macro("texts", lead, list(columns))


def tiles(items: Iterable[tuple[str, str, str]]) -> Markup:
    """Figures to see first: a name, a value and a note each."""
    return _macro("tiles", list(items))


def details(title: str, body: Markup, opened: bool = False) -> Markup:
    """What unfolds under a title."""
    return _macro("details", title, body, opened)


def folded(title: str, rows: Rows, opened: bool = False) -> Markup:
    """A table of names and values that unfolds under its title."""
    return details(title, table(rows, caption=title), opened)


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
