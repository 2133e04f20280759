"""The model card: README.md of a package, made from values only.

It states what was removed, how it was chosen, what was measured and under which protocol, how
to load the model, and what nobody has looked at. A number that was not measured is not in it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

from bipline.compression.criteria import CRITERIA
from bipline.compression.descriptions import criterion_description
from bipline.delivery.card_metadata import card_text
from bipline.delivery.compensation_text import compensation_lines
from bipline.delivery.contents import NO_SCORES, PackageContents
from bipline.delivery.formats.registry import format_of, loaded_from
from bipline.values.export import ExportRecord
from bipline.values.figures import percent
from bipline.values.plan import PruningPlan
from bipline.values.record import EvaluationRecord
from bipline.values.side_by_side import side_by_side


def render_card(contents: PackageContents) -> str:
    """The text of README.md; the same contents give the same bytes."""
    parts = [
        _opening(contents),
        _comparison(contents),
        _removed(contents),
        *loading_sections(contents),
        REGISTERED,
        _engines(contents),
        *(_as_format(record) for record in contents.exports.values()),
        _limitations(contents),
        _provenance(contents),
    ]
    model, record = contents.resolution.model, contents.records[contents.packaged]
    name = f"{contents.source_name} pruned"
    return card_text("\n\n".join(parts), model, contents.plan, record, name)


def method_text(criterion: str) -> str:
    """What a criterion is and where it comes from, said honestly, as markdown."""
    if criterion not in CRITERIA:
        return f"criterion {as_code(criterion)}"
    method = criterion_description(criterion)
    source = " ".join(method.status[0].text.split())
    return f"`{criterion}`: {method.idea} {source}".replace("``", "`")


def as_code(text: str) -> str:
    """A name as a code span: nothing in it can end the span, a table cell or a line."""
    plain = " ".join(text.split()).replace("`", "'").replace("|", "¦")
    return f"`{plain}`" if plain else ""


def escaped(text: str) -> str:
    """A name as plain text: markdown, HTML and table syntax in it mean nothing."""
    return re.sub(r"([\\`*_\[\]<>|#&~])", r"\\\1", " ".join(text.split()))


def _opening(contents: PackageContents) -> str:
    budget = contents.plan.budget
    recovered = (
        "It was then trained briefly with LoRA, and the adapter merged into the weights."
        if contents.packaged == "recovered"
        else "It was not trained afterwards."
    )
    around = f"{contents.around} " if contents.around else ""
    return (
        f"# {escaped(contents.source_name)}, pruned by {percent(budget.reached_blocks)}\n\n"
        f"A structurally pruned language model: whole {contents.plan.attention_kind} and "
        f"{contents.plan.ffn_kind} were removed, {percent(budget.reached_blocks)} of the linear "
        f"weights of its decoder blocks "
        f"and {percent(budget.reached_total)} of all its parameters. {around}{recovered} "
        "`report.html` beside this file shows the same with pictures."
    )


def markdown_table(measured: Mapping[str, EvaluationRecord], packaged: str) -> list[str]:
    """The figures of models side by side, and the packaged one's change against the dense."""
    head = ["", *(model.capitalize() for model in measured), "Change"]
    lines = [_line(head), _line(["---", *["---:"] * (len(measured) + 1)])]
    return lines + [
        _line([escaped(line.title), *line.texts.values(), line.change])
        for line in side_by_side(measured, packaged)
    ]


def _comparison(contents: PackageContents) -> str:
    lines = markdown_table(contents.measured, contents.packaged)
    change = f"Change is of the {contents.packaged} model, the one packaged, against the dense."
    protocol = _protocol(contents.records["dense"])
    return "\n".join(["## Measured", "", *lines, "", change, protocol])


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _protocol(record: EvaluationRecord) -> str:
    shown = {key: value for key, value in record.protocol.items() if _is_plain(value)}
    settings = ", ".join(f"{key} {_setting(value)}" for key, value in sorted(shown.items()))
    files = {**record.protocol.get("texts", {}), **record.protocol.get("tasks", {})}
    lines = [f"* {escaped(name)}: sha256 {as_code(str(files[name]))}" for name in sorted(files)]
    processor = escaped(str(record.environment.get("processor", "an unknown processor")))
    return "\n".join(
        [
            "",
            f"All columns were measured under one protocol ({settings}; digest "
            f"`{record.protocol_digest}`). The dense model was measured on {processor}. "
            "Perplexity is per token of this model's tokenizer, over windows that do not overlap.",
            "",
            *lines,
        ]
    ).rstrip()


def _setting(value: object) -> str:
    return as_code(value if isinstance(value, str) else json.dumps(value))


def _is_plain(value: object) -> bool:
    return isinstance(value, (str, int, float, bool))


def _removed(contents: PackageContents) -> str:
    scored = contents.scored
    tokens = f"calibration tokens: digest `{scored[0].calibration_digest}`" if scored else NO_SCORES
    return removed_text(contents.plan, contents.dense_widths, tokens)


def removed_text(plan: PruningPlan, dense: tuple[int, int], *more: str) -> str:
    """What a plan removed and how it was chosen; ``dense`` are the widths before."""
    kept = "query heads" if plan.queries_per_group else "groups"
    return "\n".join(
        [
            "## What was removed",
            "",
            *_kept(plan, dense),
            f"* asked for: {percent(plan.budget.asked)} of {_of(plan.budget.of)}",
            f"* chosen by {method_text(plan.criterion)}",
            f"* split between blocks: `{plan.allocation}`",
            *(f"* {line}" for line in compensation_lines(plan)),
            *(f"* {line}" for line in more),
            *(f"* {escaped(note)}" for note in plan.notes),
            "",
            f"`pruning_plan.json` lists the kept {kept} and {plan.ffn_kind} of every block.",
        ]
    )


def _kept(plan: PruningPlan, dense: tuple[int, int]) -> list[str]:
    """How wide the blocks are that stay, and how many went."""
    kept = plan.kept_blocks
    gone = len(plan.blocks) - len(kept)
    groups = _span([len(plan.blocks[index].attention_groups) for index in kept])
    counted = [index for index in kept if index in plan.counted_blocks]
    units = _span([plan.blocks[index].told_widths[1] for index in counted])
    lines = [f"* {gone} of {len(plan.blocks)} blocks are gone whole"] if gone else []
    queries = plan.queries_per_group
    of_group = f"; of each group's query heads {queries} stay" if queries else ""
    return [
        *lines,
        f"* every one of the {len(kept)} blocks keeps {groups} of "
        f"{dense[0]} attention groups (a KV head with its query heads) "
        f"and {units} of {dense[1]} {plan.ffn_kind}{_inside(plan)}"
        f"{_whole(len(kept) - len(counted))}{of_group}",
    ]


def _inside(plan: PruningPlan) -> str:
    """How many experts lost channels; empty where none did."""
    if not plan.within_experts:
        return ""
    return f", of which a block has {_span([len(b.experts) for b in plan.blocks if b.experts])}"


def _whole(blocks: int) -> str:
    """What is told of blocks without experts beside others that have some; empty for none."""
    return f"; the first {blocks} have no experts, and all channels" if blocks else ""


def _span(sizes: Sequence[int]) -> str:
    low, high = min(sizes), max(sizes)
    return f"{low}" if low == high else f"from {low} to {high}"


def _of(share: str) -> str:
    return {"blocks": "the blocks' linear weights", "total": "all parameters"}[share]


REGISTERED = (
    "## How to load it from a registry\n\n"
    "```python\n"
    "import mlflow\n\n"
    'model = mlflow.pyfunc.load_model("models:/NAME@ALIAS")\n'
    'model.predict(["Once upon a time"], params={"max_new_tokens": 32})\n'
    "```\n\n"
    "`mlflow models serve -m models:/NAME@ALIAS --env-manager local` answers over HTTP. "
    "`mlflow.transformers.load_model` gives the pipeline where the blocks are equally wide; a "
    "model whose blocks differ is loaded by the installed bipline, and `mlflow.pyfunc` alone."
)

# What was read of vLLM (docs/export.md), which needs a GPU.
VLLM_READ = "0.33.0"
VLLM_UNIFORM = "takes all sizes of `hf` from its config.json, head_dim too."
VLLM_PER_LAYER = (
    "takes each block's query and KV heads from `per_layer_config` and the class from the code in "
    "`hf`, which `--trust-remote-code` allows to run; a block without attention it refuses."
)


def loading_sections(contents: PackageContents) -> list[str]:
    """How each format of the package is loaded, as sections of markdown."""
    layout, sections = contents.plan.layout, []
    for name in dict.fromkeys(contents.formats):
        head = "## How to load" if name == "hf" else f"## How to load {as_code(name)}"
        told = format_of(name).how_to_load(loaded_from(name), layout).strip()
        sections.append(f"{head}\n\n{told}")
    return sections


def _engines(contents: PackageContents) -> str:
    """Which engines ran this package when it was made, and what of another's source was read."""
    run = ["transformers", *(escaped(each.check.engine) for each in contents.exports.values())]
    layout = VLLM_PER_LAYER if contents.plan.layout == "per-layer" else VLLM_UNIFORM
    return (
        f"## Engines\n\nRun on this package when it was made: {', '.join(run)}. Not run on it, "
        f"only read in its source: vLLM {VLLM_READ}, which {layout}"
    )


def _as_format(record: ExportRecord) -> str:
    """What a format's own engine said of it: its figures are of no other format."""
    check, held = record.check, f"`{record.format}` ({record.type})"
    lines = [
        f"## Measured as {held}",
        f"The figures above are of the tensors in `hf`. {escaped(check.engine)} opened the {held} "
        f"file as architecture `{record.architecture}` in a process of its own: the same token "
        f"ids, log-probabilities that differ by at most {check.largest_difference:.1e} nats, a "
        f"divergence of {check.divergence:.1e} nats from the model in float32.",
    ]
    if record.perplexity:
        lines += [
            "Perplexity of that file, by that engine, on the first windows of each text:",
            perplexity_table(record),
        ]
    return "\n\n".join([*lines, *(f"* {escaped(note)}" for note in record.notes)])


def perplexity_table(record: ExportRecord) -> str:
    """Perplexity by text, of the file by its engine beside the model's own, as markdown."""
    rows = [
        (name, f"{each.engine.value:.4f}", f"{each.model.value:.4f}", f"{each.engine.tokens:,}")
        for name, each in record.perplexity.items()
    ]
    return plain_table(rows, ("perplexity", "of this file", "of the model in float32", "tokens"))


def plain_table(rows: Sequence[tuple[object, ...]], head: tuple[str, ...] = ("", "")) -> str:
    """A markdown table whose cells are plain text."""
    cells = [tuple(escaped(str(cell)) for cell in row) for row in rows]
    return "\n".join(_line(list(line)) for line in (head, ("---",) * len(head), *cells))


def _limitations(contents: PackageContents) -> str:
    measured = [*contents.records["dense"].perplexity, *contents.records["dense"].tasks]
    names = ", ".join(escaped(name) for name in sorted(measured)) or "nothing"
    return (
        "## Limitations\n\n"
        f"* Measured on: {names}. Not evaluated for anything else: not for safety, bias, "
        "toxicity, factual accuracy, memorised text, other languages or long contexts.\n"
        "* Pruning can take rare abilities first, which an average hardly shows. Measure what "
        "you need before you rely on it.\n"
        "* Perplexity compares only within one tokenizer and one protocol.\n"
        "* The limits and the licence of the dense model hold for this one too."
    )


def _provenance(contents: PackageContents) -> str:
    model = contents.resolution.model
    revision = f", revision {as_code(model.revision)}" if model.revision else ""
    licence = escaped(model.licence) if model.licence else "unknown: the source names none"
    return "\n".join(
        [
            "## Where it comes from",
            "",
            f"* dense model: {as_code(contents.source_name)}{revision}",
            f"* licence: {licence}",
            f"* tensors of the dense model: `{model.tensor_digest}`",
            f"* tensors of this model: `{contents.records[contents.packaged].tensor_digest}`",
            f"* plan: `{contents.plan.digest}`",
            f"* resolution: `{contents.resolution.digest}`",
        ]
    )
