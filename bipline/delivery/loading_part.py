"""The report's part that says how each format of the package is loaded, and by whom it was run."""

from __future__ import annotations

from markupsafe import Markup

from bipline.delivery.contents import PackageContents
from bipline.delivery.formats.registry import format_of, loaded_from
from bipline.delivery.page import details, joined
from bipline.values.figures import FORMAT_TEXT_FIGURES, format_figures, kind_of

FENCE = "```"


def loading_part(contents: PackageContents) -> tuple[str, Markup]:
    """How users load each format, as the card says it, and what its engine measured of it."""
    names = list(dict.fromkeys(contents.formats))
    lead = f"The package holds {', '.join(names)}. Paths are inside the package."
    return lead, joined(details(name, _told(contents, name), name == "hf") for name in names)


def _told(contents: PackageContents, name: str) -> Markup:
    how = format_of(name).how_to_load(loaded_from(name), contents.plan.layout)
    measured = _measured(contents, name)
    return joined([prose(how), *([prose(measured)] if measured else [])], "loading")


def _measured(contents: PackageContents, name: str) -> str:
    record = contents.exports.get(name)
    if record is None:
        return ""
    figures = [
        f"{figure.name.split('.', 2)[2]}: {kind_of(figure.name).title} {figure.text}"
        for figure in format_figures({name: record}).values()
        if figure.name.partition(".")[0] in FORMAT_TEXT_FIGURES
    ]
    opened = f"Opened by {record.check.engine} as {record.architecture}, stored as {record.type}."
    told = "It is measured on the first windows of each text, beside the model in float32."
    return "\n\n".join([opened, *([told, *figures] if figures else [])])


def prose(markdown: str) -> Markup:
    """Paragraphs, code spans and fenced code of a card as HTML; every other sign stays as it is."""
    parts = markdown.split(FENCE)
    shown = []
    for number, part in enumerate(parts):
        if number % 2:
            code = part.partition("\n")[2].rstrip()
            shown.append(Markup("<pre><code>{}</code></pre>").format(code))
            continue
        paragraphs = (each.strip() for each in part.split("\n\n"))
        shown += [Markup("<p>{}</p>").format(_spans(each)) for each in paragraphs if each]
    return joined(shown)


def _spans(text: str) -> Markup:
    parts = text.split("`")
    spans = (
        Markup("<code>{}</code>").format(part) if number % 2 else Markup("{}").format(part)
        for number, part in enumerate(parts)
    )
    return Markup("").join(spans)
