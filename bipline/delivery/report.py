"""The report: one page about a package, see :mod:`bipline.delivery.page`.

Each part is a function of the contents that gives its lead and its body.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from bipline import __version__
from bipline.compression.criteria import CRITERIA
from bipline.compression.descriptions import criterion_description
from bipline.delivery.compensation_text import HEADER, compensation_lines, compensation_rows
from bipline.delivery.contents import NO_SCORES, PackageContents, portable_config
from bipline.delivery.loading_part import loading_part
from bipline.delivery.page import (
    Lane,
    Part,
    code,
    figure,
    flat,
    folded,
    joined,
    lanes,
    render_page,
    swatch,
    table,
    texts,
    tiles,
)
from bipline.delivery.pictures import (
    FEW_BLOCKS,
    Group,
    dots_picture,
    errors_picture,
    histogram_picture,
    widths_picture,
)
from bipline.delivery.published import published_table
from bipline.delivery.recovery_part import recovery_told
from bipline.delivery.samples import NEW_TOKENS
from bipline.delivery.score_groups import attention_units, ffn_units
from bipline.delivery.widths_text import attention_lead, dense_counts
from bipline.settings.published import PublishedRow
from bipline.values.combination import UNIFORM
from bipline.values.figures import percent, perplexity_text
from bipline.values.record import EvaluationRecord, Perplexity
from bipline.values.side_by_side import side_by_side

# What of a package's figures is seen first, and how many of them.
TILES, MOST_TILES = {"parameters", "perplexity", "acc", "prefill_tokens_per_second"}, 4
Content = tuple[str, Markup]


def render_report(contents: PackageContents) -> str:
    """The whole page. Raises Refused when the stored scores are damaged."""
    budget = contents.plan.budget
    title = f"{contents.source_name}, pruned by {percent(budget.reached_blocks)}"
    subtitle = (
        f"{percent(budget.reached_blocks)} of the linear weights of the decoder blocks and "
        f"{percent(budget.reached_total)} of all parameters were removed. "
        f"The package holds the {contents.packaged} model."
    )
    return render_page(title, subtitle, PARTS, contents, _facts(contents))


def _facts(contents: PackageContents) -> list[tuple[str, str]]:
    """What the line of the title tells; of time, run and verdict no package says anything."""
    plan, records = contents.plan, contents.records
    chosen = [plan.criterion, plan.allocation, *([plan.layout] if plan.layout != UNIFORM else [])]
    after, before = records[contents.packaged].parameters, records["dense"].parameters
    return [
        ("Parameters", f"{after:,} of {before:,}"),
        ("Method", ", ".join([*chosen, plan.compensation])),
        ("Model", contents.source_name),
        ("Holds", f"the {contents.packaged} model"),
        ("bipline", __version__),
    ]


def summary_part(contents: PackageContents) -> Content:
    """Key figures, and dense, pruned and recovered model side by side."""
    lines = side_by_side(contents.measured, contents.packaged)
    first = [
        (line.title, line.texts[contents.packaged], f"{line.texts['dense']} dense, {line.change}")
        for line in lines
        if line.change and line.name.partition(".")[0] in TILES
    ]
    rows = [[line.title, *line.texts.values(), line.change] for line in lines]
    head = ["", *(model.capitalize() for model in contents.measured), "Change"]
    lead = f"Change is of the {contents.packaged} model against the dense one, same protocol."
    figures = table(rows, head, True, f"The {', '.join(contents.measured)} model, side by side")
    shown = [tiles(first[:MOST_TILES]), figures, *_intervals(contents), *_published(contents)]
    return lead, joined(shown)


def _published(contents: PackageContents) -> list[Markup]:
    """What others printed of such models, where the configuration holds any of it."""
    rows = [PublishedRow.model_validate(each) for each in contents.config.get("published", ())]
    if not rows:
        return []
    removed = contents.plan.budget.reached_total
    head, lines = published_table(rows, contents.measured, removed)
    caption = "Published by others and not measured here, below this run's own figures"
    return [table(lines, head, caption=caption)]


def _intervals(contents: PackageContents) -> list[Markup]:
    """Each text's perplexity of each model, with its 95 % interval where the record tells one."""
    named = {text: None for record in contents.measured.values() for text in record.perplexity}
    return [
        lanes(
            f"Perplexity on {text}: the lower, the better; lines are 95 % intervals of each alone, "
            "that of the change is narrower.",
            [
                _lane(f"{model}, {record.parameters:,} parameters", record.perplexity[text])
                for model, record in contents.measured.items()
                if text in record.perplexity
            ],
            "perplexity",
        )
        for text in sorted(named)
    ]


def _lane(name: str, found: Perplexity) -> Lane:
    low, high = found.interval or (found.value, found.value)
    told = f" ({perplexity_text(low)} to {perplexity_text(high)})" if found.interval else ""
    return Lane(name, low, found.value, high, f"{perplexity_text(found.value)}{told}")


def samples_part(contents: PackageContents) -> Content:
    """How the dense model and the packaged one go on from the same beginnings."""
    if not contents.samples:
        return "None were written.", Markup("")
    lead = (
        f"Greedy continuations of at most {NEW_TOKENS} tokens in float32: the likeliest token, "
        "again and again. What they show is no measurement."
    )
    return lead, joined(texts(f"“{each.prompt}”", each.texts.items()) for each in contents.samples)


def widths_part(contents: PackageContents) -> Content:
    """How many attention groups and FFN channels, or experts, each block keeps."""
    plan = contents.plan
    widths: tuple[list[int | None], list[int | None]] = (
        [block.attention_units for block in plan.blocks],
        [
            block.told_widths[1] if index in plan.counted_blocks else None
            for index, block in enumerate(plan.blocks)
        ],
    )
    pictures = [
        figure(
            f"{unit[0].upper()}{unit[1:]}.",
            f"{_span([each for each in kept if each is not None])} of {dense} kept in each block"
            f"{' that has some' if None in kept else ''}.",
            widths_picture(kept, dense, unit),
            [(swatch("kept"), "kept"), (swatch("dense"), "removed")],
        )
        for unit, kept, dense in zip(
            (plan.attention_kind, plan.ffn_kind), widths, dense_counts(contents), strict=True
        )
    ]
    lead = attention_lead(plan)
    return lead, joined(pictures, "pair")


def importance_part(contents: PackageContents) -> Content:
    """How important each group was, and what the plan made of it."""
    if contents.scored is None:
        return f"{NO_SCORES.capitalize()}.", Markup("")
    scores, plan = contents.scored[1], contents.plan
    heads, units = attention_units(contents, scores), ffn_units(plan, scores)
    of_ffn = _marks if plan.ffn_kind == "experts" else _histograms
    pictures = [_marks(heads, plan.attention_kind), of_ffn(units, plan.ffn_kind)]
    told = f", {criterion_description(plan.criterion).idea}" if plan.criterion in CRITERIA else "."
    whole = "an expert" if plan.within_experts else "a block"
    again = plan.compensation in ("obs", "osscar", "slimgpt")
    lead = (
        f"Scores by {plan.criterion}{told} Within {whole} the highest stay"
        f"{', unless compensation chose again' if again else ''}; a higher "
        f"score elsewhere may go, because allocation {plan.allocation} decides what each block "
        "keeps."
    )
    return lead, joined(pictures, "pair" if len(heads) <= FEW_BLOCKS else "")


def _marks(groups: list[Group], kind: str) -> Markup:
    return figure(
        f"{kind.capitalize()}.",
        f"One mark each, from left to right in the order of the {kind}." + _zeros(groups),
        dots_picture(groups, kind.removesuffix("s")),
        [(swatch("kept"), "kept (disc)"), (swatch("removed"), "removed (cross)")],
    )


def _histograms(groups: list[Group], kind: str) -> Markup:
    return figure(
        f"{kind[0].upper()}{kind[1:]}.",
        "One histogram per block: the wider, the more channels of that importance."
        + _zeros(groups),
        histogram_picture(groups, kind),
        [(swatch("kept"), "kept"), (swatch("removed"), "removed")],
    )


def compensation_part(contents: PackageContents) -> Content:
    """What was done to the weights that stay, and what it did to each block."""
    lines = [line.replace("`", "").removesuffix(".") for line in compensation_lines(contents.plan)]
    lead = " ".join(f"{line[0].upper()}{line[1:]}." for line in lines)
    if (record := contents.plan.compensated) is None:
        return lead, Markup("")
    picture = errors_picture(
        [block.error_without for block in record.blocks], [block.error for block in record.blocks]
    )
    shown = figure(
        "Errors.",
        "What each block's output differs by from the dense model's, on held-out windows: "
        "0 is equal, 2 unrelated.",
        picture,
        [(swatch("removed"), "without (ring)"), (swatch("kept"), "with compensation (disc)")],
    )
    rows = compensation_rows(contents.plan)
    return lead, shown + table(rows, HEADER, True, "What each block's matrices took")


def evaluation_part(contents: PackageContents) -> Content:
    """The protocol, then every measured number with its details, model by model."""
    protocol = contents.records["dense"].to_json_value()["protocol"]
    shown = [folded("Protocol", flat(protocol), opened=True)]
    shown += [
        folded(f"{model.capitalize()} model", _record_rows(record))
        for model, record in contents.measured.items()
    ]
    return "All models were measured under this one protocol.", joined(shown)


def recovery_part(contents: PackageContents) -> Content:
    """What the recovery training did, or that there was none."""
    if contents.recovery is None:
        return "No recovery training was run.", Markup("")
    return recovery_told(contents.recovery)


def configuration_part(contents: PackageContents) -> Content:
    """The configuration of the run, section by section, without local paths."""
    config = portable_config(contents.config)
    sections = {name: value for name, value in config.items() if isinstance(value, Mapping)}
    general = flat({name: value for name, value in config.items() if name not in sections})
    shown = [folded("General", general, opened=True)] if general else []
    shown += [folded(name.capitalize(), flat(each)) for name, each in sections.items()]
    lead = "As the run read it, with every default written out. Local paths are shortened."
    return lead, joined(shown)


def versions_part(contents: PackageContents) -> Content:
    """The versions numbers were measured with, and the digests everything is named by."""
    model = contents.resolution.model
    digests = [[name, code(digest)] for name, digest in _digests(contents).items()]
    source = {"source": contents.source_name, "revision": model.revision, "licence": model.licence}
    shown = [folded("Digests (sha256)", digests, opened=True), folded("Source", flat(source))]
    for name, record in contents.measured.items():
        versions = flat({"bipline": __version__, **record.environment})
        shown.append(folded(f"Versions and machine, {name} model", versions))
    lead = (
        "No time, run or verdict is told here, so that the same inputs give the same bytes. "
        "The folder lineage beside this file has them, and the copy of this page in MLflow in "
        "the line of its title."
    )
    return lead, joined(shown)


PARTS: tuple[Part[PackageContents], ...] = (
    Part("summary", "Summary", summary_part),
    Part("samples", "Samples of text", samples_part),
    Part("loading", "How to load", loading_part),
    Part("widths", "Widths kept", widths_part),
    Part("importance", "Importance per block", importance_part),
    Part("compensation", "Compensation", compensation_part),
    Part("evaluation", "Evaluation", evaluation_part),
    Part("recovery", "Recovery", recovery_part),
    Part("configuration", "Configuration", configuration_part),
    Part("versions", "Versions and digests", versions_part),
)


def _digests(contents: PackageContents) -> dict[str, str]:
    resolution, scored = contents.resolution, contents.scored
    return {
        "resolution": resolution.digest,
        "tensors, dense": str(resolution.model.tensor_digest),
        **{
            f"tensors, {model}": record.tensor_digest
            for model, record in contents.measured.items()
            if model != "dense"
        },
        "tokenizer": resolution.model.tokenizer_digest,
        **({"calibration tokens": scored[0].calibration_digest} if scored else {}),
        "plan": contents.plan.digest,
        "protocol": contents.records["dense"].protocol_digest,
        **{f"text {name}": text.sha256 for name, text in resolution.texts.items()},
        **{f"task {name}": task.sha256 for name, task in resolution.tasks.items()},
    }


def _zeros(groups: list[Group]) -> str:
    """A word about zeros, which a logarithmic axis cannot place."""
    count = sum(score <= 0 for group in groups for score in group.scores)
    return f" {count:,} scores are zero and lie on the floor." if count else ""


def _record_rows(record: EvaluationRecord) -> list[list[Any]]:
    rows: list[list[Any]] = [
        ["parameters", f"{record.parameters:,}"],
        ["bytes of weights", f"{record.file_bytes:,}"],
        ["protocol digest", code(record.protocol_digest)],
    ]
    for name, text in sorted(record.perplexity.items()):
        rows += flat(text.model_dump(), f"perplexity of {name}")
    for name, task in sorted(record.tasks.items()):
        rows += flat(task.model_dump(), f"task {name}")
    return rows + (flat(record.speed.model_dump(), "speed") if record.speed else [])


def _span(counts: Sequence[int]) -> str:
    """``6`` where all are equal, else ``5 to 7``."""
    low, high = min(counts), max(counts)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
