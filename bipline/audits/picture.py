"""The lineage of a served model as a picture: from the source at the top to what is served.

Each box is a thing, with what was found of it; the mark before its name says the worst of the
answers, by its shape as well as by its colour.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from bipline.audits.findings import worst
from bipline.delivery.pictures import svg
from bipline.values.audit import Finding, Status

WIDTH, LEFT, ROOM = 440.0, 8.0, 14.0
TITLE_LINE, LINE, GAP = 24.0, 17.0, 26.0
MARK = 5.0
# Looks that no other picture has; the page's colours follow light and dark.
FRAME = "fill:none;stroke:var(--edge)"
RING = "fill:none;stroke:var(--muted);stroke-width:1.9"
NAME = "fill:var(--ink);font-size:14px;font-weight:600"
# Wide enough for the widest letters of a sans-serif at 12.5 units.
LETTERS = (
    ("WM@%", 12.6),
    ("ABCDEFGHIJKLNOPQRSTUVXYZmw_<>&+=~#^", 10.6),
    ("fijlrt.,:;|!'()[] ", 4.6),
)
USUAL, DOUBLE = 7.2, 13.0


@dataclass(frozen=True)
class Box:
    """A thing on the way: its name, what is said of it, and the findings about it."""

    title: str
    lines: tuple[str, ...]
    findings: tuple[Finding, ...]

    @property
    def height(self) -> float:
        """How tall it is drawn."""
        return TITLE_LINE + LINE * len(self.lines) + 10


def lineage_picture(boxes: Sequence[Box]) -> Markup:
    """The boxes below each other, an arrow from each to what was made of it."""
    shapes, y = [], 4.0
    for number, box in enumerate(boxes):
        if number:
            shapes.append(_arrow(y - GAP, y))
        shapes.append(_box(box, y))
        y += box.height + GAP
    told = "; ".join(f"{box.title}: {worst(box.findings)}" for box in boxes)
    return svg(WIDTH, y - GAP + 4, f"lineage, from source to served: {told}", "".join(shapes))


def _box(box: Box, y: float) -> str:
    title = f"<title>{escape(box.title)}: {worst(box.findings)}</title>"
    frame = (
        f'<rect style="{FRAME}" x="{LEFT:.1f}" y="{y:.1f}" width="{WIDTH - 2 * LEFT:.1f}" '
        f'height="{box.height:.1f}" rx="6"/>'
    )
    x, middle = LEFT + ROOM, y + TITLE_LINE / 2 + 5
    name = _text(x + 16, middle + 4.5, NAME, fitted(box.title, WIDTH - x - 16 - 2 * ROOM))
    lines = [
        _text(x + 16, middle + 4.5 + LINE * number, "", fitted(line, WIDTH - x - 16 - 2 * ROOM))
        for number, line in enumerate(box.lines, start=1)
    ]
    return f"<g>{title}{frame}{mark(worst(box.findings), x + 2, middle)}{name}{''.join(lines)}</g>"


def mark(status: Status, x: float, y: float) -> str:
    """A disc for what holds, a cross for what differs, a ring for what cannot be known."""
    if status == "differs":
        side = f"{2 * MARK:.1f}"
        corner = f"{x - MARK:.1f} {y - MARK:.1f}"
        return f'<path class="cross" d="M{corner}l{side} {side}m0 -{side}l-{side} {side}"/>'
    look = 'class="kept"' if status == "holds" else f'style="{RING}"'
    return f'<circle {look} cx="{x:.1f}" cy="{y:.1f}" r="{MARK:.1f}"/>'


def legend() -> list[tuple[Markup, str]]:
    """The three marks and their names."""
    told: tuple[tuple[Status, str], ...] = (
        ("holds", "holds"), ("differs", "differs"), ("unknown", "cannot be known here"),
    )  # fmt: skip
    return [(svg(28, 14, "", mark(status, 14, 7)), name) for status, name in told]


def _arrow(top: float, bottom: float) -> str:
    x = WIDTH / 2
    return f'<path class="reached" d="M{x:.1f} {top:.1f}V{bottom - 2:.1f}m-5 -6l5 6l5 -6"/>'


def _text(x: float, y: float, look: str, text: str) -> str:
    styled = f' style="{look}"' if look else ""
    return f'<text class="tick"{styled} x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'


def fitted(text: str, width: float) -> str:
    """A text that is no wider than this, in units of 12.5 a line; what is left out is an ellipsis.

    Counted by letters, generously: whoever looks at it may have any font.
    """
    text = "".join(each for each in text if each.isprintable())
    if sum(_widths(text)) <= width:
        return text
    used, kept = DOUBLE, ""
    for letter, each in zip(text, _widths(text), strict=True):
        used += each
        if used > width:
            break
        kept += letter
    return f"{kept.rstrip()}…"


def _widths(text: str) -> Iterator[float]:
    for letter in text:
        if unicodedata.east_asian_width(letter) in "WF":
            yield DOUBLE
        else:
            yield next((wide for some, wide in LETTERS if letter in some), USUAL)
