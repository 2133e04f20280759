"""An audit as a page that one likes to read: the lineage, what is to be looked at, each answer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from markupsafe import Markup

from bipline.audits.picture import Box, legend, lineage_picture
from bipline.delivery.page import (
    Part,
    figure,
    is_titled,
    joined,
    render_page,
    table,
    texts,
    tiles,
)
from bipline.storage.strict_json import written_text
from bipline.values.audit import Audit, AuditedVersion, Finding, RegistryAudit, Status

TITLE = "Audit of"
WORDS: dict[Status, str] = {
    "holds": "holds", "differs": "differs", "unknown": "cannot be known",
}  # fmt: skip
# What is asked of each thing on the way from the source to what is served: what findings are about.
STEPS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("Source", "the dense model and the texts that were read", (
        "dense model", "dense model again", "text", "source")),
    ("Making", "the runs, their code and settings, and what ZenML keeps of them", (
        "run", "runs", "settings", "provenance", "ZenML")),
    ("Plan", "what was removed, and whether that gives the same tensors", ("plan", "replay")),
    ("Package", "the bytes that are served, and whose word they are", (
        "bytes", "signature", "origin", "BOM", "lineage", "lineage's signature", "trust")),
    ("Evaluation", "what was measured of it, under which protocol", ("evaluation", "records")),
    ("Registry", "what MLflow keeps of the version", (
        "registry's copy", "version's tags", "MLflow run", "run's tags", "run's parameters",
        "run's figures", "model's figures", "run's files")),
    ("Promotion", "who let it through, past which gate, and who moved the alias", (
        "verdict", "verdicts", "journal", "who promoted")),
)  # fmt: skip
SHOWN_LINES = 2


def render_audit(found: Audit) -> str:
    """The page about one package; the same audit gives the same bytes."""
    facts = [("Package", found.package_digest or "none that can be read"), *_when(found)]
    parts = [
        Part("lineage", "Lineage", _lineage),
        *(_step(name, lead) for name, lead, _ in STEPS if findings_of(found, name)),
    ]
    return render_page(f"{TITLE} {found.source}", _sentence(found), parts, found, facts)


def render_registry(found: RegistryAudit) -> str:
    """The page about all versions that aliases point at: a table, then each of them."""
    differing = len(found.differences)
    told = f"{len(found.versions)} versions that an alias points at, {differing} with differences."
    parts: list[Part[RegistryAudit]] = [Part("versions", "Versions", _versions)]
    parts += [_of_version(number, each) for number, each in enumerate(found.versions, start=1)]
    return render_page(f"{TITLE} {found.registry}", told, parts, found)


def is_audit_page(path: Path) -> bool:
    """Whether a file is a page that an earlier audit wrote."""
    return is_titled(written_text(path), TITLE)


def findings_of(found: Audit, step: str) -> tuple[Finding, ...]:
    """The findings about one thing on the way; what nothing asks for is of the package."""
    return tuple(each for each in found.findings if _step_of(each.about) == step)


def _step_of(about: str) -> str:
    for name, _, asked in STEPS:
        if about in asked or (about.partition(" ")[0] in ("text", "ZenML", "evaluation") and (
            about.partition(" ")[0] in asked
        )):  # fmt: skip
            return name
    return "Package"


def _sentence(found: Audit) -> str:
    if found.differences:
        first = found.differences[0]
        more = len(found.differences) - 1
        also = f", and {more} more" if more else ""
        return f"Something differs: {first.about}{also}. What it is, and what follows, is below."
    return "Nothing differs. What cannot be known from here is listed with what follows from that."


def _when(found: Audit) -> list[tuple[str, str]]:
    at = found.audited_at
    return [("Audited", f"{at:%Y-%m-%d %H:%M} UTC")] if at else []


def _lineage(found: Audit) -> tuple[str, Markup]:
    boxes = [
        Box(name, _lines(told), told) for name, _, _ in STEPS if (told := findings_of(found, name))
    ]
    caption = "Each box says the worst of what was found of it; all of it is below."
    picture = figure(
        "From the source to what is served.", caption, lineage_picture(boxes), legend()
    )
    return "", joined([picture, joined([_counted(found), *_open(found)], "beside")], "pair")


def _counted(found: Audit) -> Markup:
    notes = {
        "holds": "compared, and the same", "differs": "two places say different things",
        "unknown": "nothing here can tell",
    }  # fmt: skip
    return tiles(
        (WORDS[status], str(count), notes[status]) for status, count in found.counts.items()
    )


def _open(found: Audit) -> Iterator[Markup]:
    """What somebody has to look at, each with what follows from it."""
    leads: dict[Status, str] = {"differs": "What differs", "unknown": "What cannot be known here"}
    for status, lead in leads.items():
        told = [each for each in found.findings if each.status == status]
        if told:
            yield texts(
                lead, [(each.about, f"{each.said}\nSo {each.consequence}.") for each in told]
            )


def _lines(findings: Sequence[Finding]) -> tuple[str, ...]:
    """What to read first of a thing: what differs, then what was told."""
    ordered = sorted(findings, key=lambda each: each.status != "differs")
    return tuple(f"{each.about}: {each.said}" for each in ordered[:SHOWN_LINES])


def _step(name: str, lead: str) -> Part[Audit]:
    def content(found: Audit) -> tuple[str, Markup]:
        return f"{lead[0].upper()}{lead[1:]}.", _table(findings_of(found, name))

    return Part(name.lower(), name, content)


def _table(findings: Iterable[Finding], caption: str = "") -> Markup:
    return table([(each.about, _told(each)) for each in findings], caption=caption)


def _told(finding: Finding) -> Markup:
    """The answer, what it rests on, and what follows."""
    so = Markup("<br>So {}.").format(finding.consequence) if finding.consequence else ""
    look = Markup("<strong>{}</strong>: {}{}")
    return look.format(WORDS[finding.status].capitalize(), finding.said, so)


def _versions(found: RegistryAudit) -> tuple[str, Markup]:
    rows = [
        (f"{each.model} {each.version}", ", ".join(each.aliases),
         *(str(count) for count in each.audit.counts.values()))
        for each in found.versions
    ]  # fmt: skip
    head = ("version", "aliases", *WORDS.values())
    return "", table(rows, head, numeric=True, caption="Answers by version")


def _of_version(number: int, each: AuditedVersion) -> Part[RegistryAudit]:
    def content(whole: RegistryAudit) -> tuple[str, Markup]:
        _, pictured = _lineage(each.audit)
        tables = [
            _table(told, name) for name, _, _ in STEPS if (told := findings_of(each.audit, name))
        ]
        return f"{_sentence(each.audit)} Aliases: {', '.join(each.aliases)}.", joined(
            [pictured, *tables]
        )

    return Part(f"version-{number}", f"{each.model} {each.version}", content)
