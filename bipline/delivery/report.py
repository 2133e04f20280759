"""The report: one page about a package, see :mod:`bipline.delivery.page`.

Each part is a function of the contents that gives its lead and its body.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from bipline import __version__
from bipline.compression.criteria import CRITERIA
from bipline.compression.descriptions import criterion_description
from bipline.compression.statistics import Scores
from bipline.delivery.compensation_text import HEADER, compensation_lines, compensation_rows
from bipline.delivery.contents import NO_SCORES, PackageContents, portable
from bipline.delivery.page import (
    Part,
    code,
    details,
    figure,
    flat,
    joined,
    plain,
    render_page,
    swatch,
    table,
    tiles,
)
from bipline.delivery.pictures import (
    Group,
    dots_picture,
    histogram_picture,
    widths_picture,
)
from bipline.values.figures import percent, perplexity_text
from bipline.values.record import EvaluationRecord
from bipline.values.recovery import RecoveryRecord
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
    return render_page(title, subtitle, PARTS, contents)


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
    return lead, tiles(first[:MOST_TILES]) + table(rows, head, numeric=True)


def widths_part(contents: PackageContents) -> Content:
    """How many attention groups and FFN channels each block keeps."""
    widths = zip(*(block.widths for block in contents.plan.blocks), strict=True)
    pictures = [
        figure(
            f"{unit[0].upper()}{unit[1:]}.",
            f"{_span(kept)} of {dense} kept in each block.",
            widths_picture(kept, dense, unit),
            [(swatch("kept"), "kept"), (swatch("dense"), "removed")],
        )
        for unit, kept, dense in zip(
            ("attention groups", "FFN channels"), widths, contents.dense_widths, strict=True
        )
    ]
    lead = "An attention group is a KV head with its query heads; groups are removed whole."
    return lead, joined(pictures, "pair")


def importance_part(contents: PackageContents) -> Content:
    """How important each group was, and what the plan made of it."""
    if contents.scored is None:
        return f"{NO_SCORES.capitalize()}.", Markup("")
    scores, plan = contents.scored[1], contents.plan
    heads = _groups(contents, scores, "attention_groups")
    channels = _groups(contents, scores, "ffn_channels")
    body = figure(
        "Attention groups.",
        "One mark per group, from left to right in the order of the groups." + _zeros(heads),
        dots_picture(heads, "attention group"),
        [(swatch("kept"), "kept (disc)"), (swatch("removed"), "removed (cross)")],
    ) + figure(
        "FFN channels.",
        "One histogram per block: the wider, the more channels of that importance."
        + _zeros(channels),
        histogram_picture(channels, "FFN channels"),
        [(swatch("kept"), "kept"), (swatch("removed"), "removed")],
    )
    told = f", {criterion_description(plan.criterion).idea}" if plan.criterion in CRITERIA else "."
    lead = (
        f"Scores by {plan.criterion}{told} Within a block the highest stay"
        f"{', unless compensation chose again' if plan.compensation == 'obs' else ''}; a higher "
        f"score elsewhere may go, because allocation {plan.allocation} decides what each block "
        "keeps."
    )
    return lead, body


def compensation_part(contents: PackageContents) -> Content:
    """What was done to the weights that stay, and what it did to each block."""
    lead, *more = compensation_lines(contents.plan)
    lead = ". ".join([lead.replace("`", "").removesuffix("."), *more])
    rows = compensation_rows(contents.plan)
    return f"{lead[0].upper()}{lead[1:]}.", table(rows, HEADER, True) if rows else Markup("")


def evaluation_part(contents: PackageContents) -> Content:
    """The protocol, then every measured number with its details, model by model."""
    protocol = contents.records["dense"].to_json_value()["protocol"]
    folded = [details("Protocol", table(flat(protocol)), opened=True)]
    folded += [
        details(f"{model.capitalize()} model", table(_record_rows(record)))
        for model, record in contents.measured.items()
    ]
    return "All models were measured under this one protocol.", joined(folded)


def recovery_part(contents: PackageContents) -> Content:
    """What the recovery training did, or that there was none."""
    recovery = contents.recovery
    if recovery is None:
        return "No recovery training was run.", Markup("")
    after = recovery.held_out_perplexity_after
    rows = [
        ["accepted", "yes" if recovery.accepted else "no"],
        ["reason", recovery.reason],
        ["held-out perplexity before", perplexity_text(recovery.held_out_perplexity_before)],
        ["held-out perplexity after", "" if after is None else perplexity_text(after)],
        ["tokens trained on", f"{recovery.tokens:,}"],
        ["logits moved by merging, of the largest", plain(recovery.merge_difference)],
        *flat(_told(recovery), ""),
        *flat(recovery.recipe, "recipe"),
    ]
    kind = recovery.recipe.get("kind", "lora")
    lead = f"A training ({kind}), merged into the weights and kept only where it helped."
    return lead, table(rows)


def _told(recovery: RecoveryRecord) -> dict[str, Any]:
    """What newer records tell, where they do."""
    told = recovery.model_dump(
        include={"difference", "held_out_perplexity_dense", "best_step", "last_good_step"}
    )
    return {name: value for name, value in told.items() if value is not None}


def configuration_part(contents: PackageContents) -> Content:
    """The configuration of the run, section by section, without local paths."""
    config = portable(contents.config)
    sections = {name: value for name, value in config.items() if isinstance(value, Mapping)}
    general = flat({name: value for name, value in config.items() if name not in sections})
    folded = [details("General", table(general), opened=True)] if general else []
    folded += [details(name.capitalize(), table(flat(each))) for name, each in sections.items()]
    lead = "As the run read it, with every default written out. Local paths are shortened."
    return lead, joined(folded)


def versions_part(contents: PackageContents) -> Content:
    """The versions numbers were measured with, and the digests everything is named by."""
    model = contents.resolution.model
    digests = table([[name, code(digest)] for name, digest in _digests(contents).items()])
    source = {"source": contents.source_name, "revision": model.revision, "licence": model.licence}
    folded = [
        details("Digests (sha256)", digests, opened=True),
        details("Source", table(flat(source))),
    ]
    for name, record in contents.measured.items():
        versions = flat({"bipline": __version__, **record.environment})
        folded.append(details(f"Versions and machine, {name} model", table(versions)))
    return "", joined(folded)


PARTS: tuple[Part[PackageContents], ...] = (
    Part("summary", "Summary", summary_part),
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


def _groups(contents: PackageContents, scores: Scores, field: str) -> list[Group]:
    return [
        Group(tuple(getattr(scored, field).tolist()), frozenset(getattr(block, field)))
        for scored, block in zip(scores.blocks, contents.plan.blocks, strict=True)
    ]


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


def _span(counts: tuple[int, ...]) -> str:
    """``6`` where all are equal, else ``5 to 7``."""
    low, high = min(counts), max(counts)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
