"""The report: one self-contained HTML page about a package.

Each part is a function of the contents that gives an HTML fragment, so a part can be shown
elsewhere. The page needs no script and loads nothing; pictures are inline SVG. Names that come
from outside are escaped by the template, and the same contents give the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from markupsafe import Markup

from bipline import __version__
from bipline.compression.criteria import CRITERIA
from bipline.compression.descriptions import criterion_description
from bipline.delivery.compensation_text import HEADER, compensation_lines, compensation_rows
from bipline.delivery.contents import (
    PackageContents,
    measures,
    percent,
    perplexity_text,
    portable,
)
from bipline.delivery.pictures import (
    Group,
    dots_picture,
    histogram_picture,
    widths_picture,
)
from bipline.values.record import EvaluationRecord

TEMPLATE = "report.html.j2"


@dataclass(frozen=True)
class Part:
    """A part of the report: where it is linked to, its title, and its fragment."""

    identifier: str
    title: str
    html: Markup


def render_report(contents: PackageContents) -> str:
    """The whole page. Raises Refused when the stored scores are damaged."""
    parts = [Part(identifier, title, render(contents)) for identifier, title, render in PARTS]
    budget = contents.plan.budget
    title = f"{contents.source_name}, pruned by {percent(budget.reached_blocks)}"
    subtitle = (
        f"{percent(budget.reached_blocks)} of the linear weights of the decoder blocks and "
        f"{percent(budget.reached_total)} of all parameters were removed. "
        f"The package holds the {contents.packaged} model."
    )
    return str(_macros().page(title, subtitle, parts))


def summary_part(contents: PackageContents) -> Markup:
    """Key figures, and dense, pruned and recovered model side by side."""
    rows = measures(contents)
    stages = contents.stages
    tiles = [
        {
            "name": row.name,
            "value": row.values[contents.packaged],
            "note": f"{row.values['dense']} dense, {row.change}",
        }
        for row in rows
        if row.change and not row.name.startswith(("Weights", "Normalised"))
    ][:4]
    table = _table(
        [[row.name, *(row.values[stage] for stage in stages), row.change] for row in rows],
        ["", *(stage.capitalize() for stage in stages), "Change"],
        numeric=True,
    )
    lead = f"Change is of the {contents.packaged} model against the dense one, same protocol."
    return _part("summary", "Summary", lead, _macros().tiles(tiles) + table)


def widths_part(contents: PackageContents) -> Markup:
    """How many attention groups and FFN channels each block keeps."""
    pictures = []
    for field, unit in (("attention_groups", "attention groups"), ("ffn_channels", "FFN channels")):
        kept = [len(getattr(block, field)) for block in contents.plan.blocks]
        dense = len(getattr(contents.scored[1].blocks[0], field))
        pictures.append(
            _figure(
                f"{unit[0].upper()}{unit[1:]}.",
                f"{_span(kept)} of {dense} kept in each block.",
                ("kept", "removed", "dense-swatch"),
                widths_picture(kept, dense, unit),
            )
        )
    lead = "An attention group is a KV head with its query heads; groups are removed whole."
    body = Markup('<div class="pair">{}</div>').format(Markup("\n").join(pictures))
    return _part("widths", "Widths kept", lead, body)


def importance_part(contents: PackageContents) -> Markup:
    """How important each group was, and what the plan made of it."""
    heads = _groups(contents, "attention_groups")
    channels = _groups(contents, "ffn_channels")
    head_figure = _figure(
        "Attention groups.",
        "One mark per group, from left to right in the order of the groups." + _zeros(heads),
        ("kept (disc)", "removed (cross)", "removed-swatch"),
        dots_picture(heads, "attention group"),
    )
    channel_figure = _figure(
        "FFN channels.",
        "One histogram per block: the wider, the more channels of that importance."
        + _zeros(channels),
        ("kept", "removed", "removed-swatch"),
        histogram_picture(channels, "FFN channels"),
    )
    plan = contents.plan
    told = f", {criterion_description(plan.criterion).idea}" if plan.criterion in CRITERIA else "."
    lead = (
        f"Scores by {plan.criterion}{told} Within a block the highest stay"
        f"{', unless compensation chose again' if plan.compensation == 'obs' else ''}; a higher "
        f"score elsewhere may go, because allocation {plan.allocation} decides what each block "
        "keeps."
    )
    return _part("importance", "Importance per block", lead, head_figure + channel_figure)


def compensation_part(contents: PackageContents) -> Markup:
    """What was done to the weights that stay, and what it did to each block."""
    lead, *more = compensation_lines(contents.plan)
    lead = ". ".join([lead.replace("`", "").removesuffix("."), *more])
    rows = compensation_rows(contents.plan)
    table = _table(rows, HEADER, numeric=True) if rows else Markup("")
    return _part("compensation", "Compensation", f"{lead[0].upper()}{lead[1:]}.", table)


def evaluation_part(contents: PackageContents) -> Markup:
    """The protocol, then every measured number with its details, stage by stage."""
    protocol = contents.records["dense"].to_json_value()["protocol"]
    folded = [_details("Protocol", _table(_flat(protocol)), opened=True)]
    for stage in contents.stages:
        rows = _record_rows(contents.records[stage])
        folded.append(_details(f"{stage.capitalize()} model", _table(rows)))
    lead = "All models were measured under this one protocol."
    return _part("evaluation", "Evaluation", lead, Markup("\n").join(folded))


def recovery_part(contents: PackageContents) -> Markup:
    """What the recovery training did, or that there was none."""
    recovery = contents.recovery
    if recovery is None:
        return _part("recovery", "Recovery", "No recovery training was run.", Markup(""))
    after = recovery.held_out_perplexity_after
    rows = [
        ["accepted", "yes" if recovery.accepted else "no"],
        ["reason", recovery.reason],
        ["held-out perplexity before", perplexity_text(recovery.held_out_perplexity_before)],
        ["held-out perplexity after", "" if after is None else perplexity_text(after)],
        ["tokens trained on", f"{recovery.tokens:,}"],
        ["logits moved by merging, of the largest", _plain(recovery.merge_difference)],
        *_flat(recovery.recipe, "recipe"),
    ]
    lead = "A short LoRA training, merged into the weights and kept only where it helped."
    return _part("recovery", "Recovery", lead, _table(rows))


def configuration_part(contents: PackageContents) -> Markup:
    """The configuration of the run, section by section, without local paths."""
    config = portable(contents.config)
    general = [[key, _plain(value)] for key, value in config.items() if not _is_section(value)]
    folded = [_details("General", _table(general), opened=True)] if general else []
    for name, section in config.items():
        if _is_section(section):
            folded.append(_details(name.capitalize(), _table(_flat(section))))
    lead = "As the run read it, with every default written out. Local paths are shortened."
    return _part("configuration", "Configuration", lead, Markup("\n").join(folded))


def versions_part(contents: PackageContents) -> Markup:
    """The versions numbers were measured with, and the digests everything is named by."""
    statistics = contents.scored[0]
    model = contents.resolution.model
    digests = {
        "resolution": contents.resolution.digest,
        "tensors, dense": model.tensor_digest,
        **{f"tensors, {s}": contents.records[s].tensor_digest for s in contents.stages[1:]},
        "tokenizer": model.tokenizer_digest,
        "calibration tokens": statistics.calibration_digest,
        "plan": contents.plan.digest,
        "protocol": contents.records["dense"].protocol_digest,
        **{f"text {name}": text.sha256 for name, text in contents.resolution.texts.items()},
        **{f"task {name}": task.sha256 for name, task in contents.resolution.tasks.items()},
    }
    source = {"source": contents.source_name, "revision": model.revision, "licence": model.licence}
    environments = {
        stage: _table([["bipline", __version__], *_flat(contents.records[stage].environment)])
        for stage in contents.stages
    }
    body = _details("Digests (sha256)", _table(_code_rows(digests)), opened=True)
    body += _details("Source", _table(_flat(source)))
    for stage, table in environments.items():
        body += _details(f"Versions and machine, {stage} model", table)
    return _part("versions", "Versions and digests", "", body)


PARTS: tuple[tuple[str, str, Callable[[PackageContents], Markup]], ...] = (
    ("summary", "Summary", summary_part),
    ("widths", "Widths kept", widths_part),
    ("importance", "Importance per block", importance_part),
    ("compensation", "Compensation", compensation_part),
    ("evaluation", "Evaluation", evaluation_part),
    ("recovery", "Recovery", recovery_part),
    ("configuration", "Configuration", configuration_part),
    ("versions", "Versions and digests", versions_part),
)


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


def _part(identifier: str, title: str, lead: str, body: Markup) -> Markup:
    fragment: Markup = _macros().part(identifier, title, lead, body)
    return fragment


def _table(
    rows: Iterable[list[Any]], head: list[str] | None = None, numeric: bool = False
) -> Markup:
    fragment: Markup = _macros().table(head or [], list(rows), numeric)
    return fragment


def _details(title: str, body: Markup, opened: bool = False) -> Markup:
    fragment: Markup = _macros().details(title, body, opened)
    return fragment


def _figure(title: str, caption: str, key: tuple[str, str, str], picture: Markup) -> Markup:
    fragment: Markup = _macros().figure(title, caption, _macros().legend(*key), picture)
    return fragment


def _groups(contents: PackageContents, field: str) -> list[Group]:
    return [
        Group(tuple(getattr(scores, field).tolist()), frozenset(getattr(block, field)))
        for scores, block in zip(contents.scored[1].blocks, contents.plan.blocks, strict=True)
    ]


def _zeros(groups: list[Group]) -> str:
    """A word about zeros, which a logarithmic axis cannot place."""
    count = sum(score <= 0 for group in groups for score in group.scores)
    return f" {count:,} scores are zero and lie on the floor." if count else ""


def _record_rows(record: EvaluationRecord) -> list[list[Any]]:
    rows: list[list[Any]] = [
        ["parameters", f"{record.parameters:,}"],
        ["bytes of weights", f"{record.file_bytes:,}"],
        ["protocol digest", _code(record.protocol_digest)],
    ]
    for name, text in sorted(record.perplexity.items()):
        rows += _flat(text.model_dump(), f"perplexity of {name}")
    for name, task in sorted(record.tasks.items()):
        rows += _flat(task.model_dump(), f"task {name}")
    if record.speed:
        rows += _flat(record.speed.model_dump(), "speed")
    return rows


def _flat(value: Mapping[str, Any], prefix: str = "") -> list[list[Any]]:
    """Nested values as rows of a dotted name and a text."""
    rows: list[list[Any]] = []
    for key, part in value.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        rows += _flat(part, name) if isinstance(part, Mapping) else [[name, _plain(part)]]
    return rows


def _plain(value: Any) -> str:
    """A value as a reader writes it: strings bare, floats short, the rest as JSON."""
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _is_section(value: Any) -> bool:
    return isinstance(value, Mapping)


def _code(text: str) -> Markup:
    return Markup("<code>{}</code>").format(text)


def _code_rows(values: Mapping[str, str]) -> list[list[Any]]:
    return [[name, _code(value)] for name, value in values.items()]


def _span(counts: list[int]) -> str:
    """``6`` where all are equal, else ``5 to 7``."""
    low, high = min(counts), max(counts)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
