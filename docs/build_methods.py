"""Writes docs/methods/: a page per criterion and per allocation, from one template.

    .venv/bin/python docs/build_methods.py

What a page says comes from the method's own docstring and options; the costs and rank
correlations from ``benchmarks/fidelity.json``, which ``benchmarks.fidelity`` measured. A test
holds the committed pages to this script.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bipline.compression.allocation import load_allocation
from bipline.compression.criteria import Criterion, load_criterion
from bipline.compression.descriptions import Description, Paragraph, all_descriptions
from bipline.compression.options import BaseOptions

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs" / "methods"
MEASURED = ROOT / "benchmarks" / "fidelity.json"


def pages() -> dict[str, str]:
    """Every page by its file name."""
    criteria, allocations = all_descriptions()
    measured = json.loads(MEASURED.read_text(encoding="utf-8")) if MEASURED.exists() else {}
    found = {f"{each.name}.md": _criterion_page(each, measured) for each in criteria}
    found.update({f"allocation-{each.name}.md": _allocation_page(each) for each in allocations})
    found["README.md"] = _index(criteria, allocations)
    return found


def _criterion_page(method: Description, measured: dict[str, Any]) -> str:
    criterion = load_criterion(method.name)
    parts = [
        f"# `{method.name}`",
        _words(method.idea),
        f"Needs {criterion.NEEDS.description}.{_told_of_query_heads(criterion)}",
        "## How it is computed",
        *map(_shown, method.computed),
        "## Options",
        _options(criterion.OPTIONS, "--criterion-option"),
        "## Cost",
        _cost(method.name, measured),
        "## Source and status",
        *map(_shown, method.status),
    ]
    return "\n\n".join(parts) + "\n"


def _told_of_query_heads(criterion: Criterion) -> str:
    if not getattr(criterion, "QUERY_HEADS", False):
        return ""
    return (
        " Query heads may go by it too (`--allocation-option attention=query-heads`): each has the "
        "sum of the scores of its channels of o_proj."
    )


def _allocation_page(method: Description) -> str:
    allocation = load_allocation(method.name)
    windows = (
        "runs calibration windows itself" if allocation.WINDOWS else "looks at the scores alone"
    )
    uniform = allocation.NOT_UNIFORM
    layouts = f"per-layer only: {uniform}" if uniform else "uniform and per-layer"
    parts = [
        f"# Allocation `{method.name}`",
        _words(method.idea),
        f"It {windows}. Layouts: {layouts}.",
        "## How it is computed",
        *map(_shown, method.computed),
        "## Options",
        _options(allocation.OPTIONS, "--allocation-option"),
        "## Source and status",
        *map(_shown, method.status),
    ]
    return "\n\n".join(parts) + "\n"


def _shown(paragraph: Paragraph) -> str:
    if paragraph.formula:
        return "```text\n" + paragraph.text.replace("``", "") + "\n```"
    return _words(paragraph.text)


def _words(text: str) -> str:
    return text.replace("``", "`")


def _options(kind: type[BaseOptions], flag: str) -> str:
    properties = kind.model_json_schema()["properties"]
    rows = [
        f"| `{name}` | `{json.dumps(told.get('default'))}` | {_allowed(told)} |"
        for name, told in properties.items()
        if name != "seed"
    ]
    if not rows:
        return "None."
    head = f"`{flag} NAME=VALUE`\n\n| name | default | allowed |\n|---|---|---|"
    return "\n".join([head, *rows])


def _allowed(told: dict[str, Any]) -> str:
    if "anyOf" in told:
        return "; or ".join(map(_allowed, told["anyOf"]))
    if "enum" in told:
        return ", ".join(f"`{value}`" for value in told["enum"])
    limits = {
        "minimum": "at least",
        "exclusiveMinimum": "above",
        "maximum": "at most",
        "exclusiveMaximum": "below",
    }
    words = [f"{word} {told[key]:g}" for key, word in limits.items() if key in told]
    return ", ".join([told.get("type", "any"), *words])


def _cost(name: str, measured: dict[str, Any]) -> str:
    rows = [
        f"| {model} | {variant} | {cost['seconds']:.1f} | "
        f"{cost['peak_anonymous_bytes'] / 1e9:.2f} | {cost['forward_passes']:.2f} |"
        for model, values in measured.items()
        for variant, cost in values["costs"].items()
        if variant.split(" ")[0] == name
    ]
    if not rows:
        return "Not measured."
    head = (
        "Scoring 128 windows of 128 tokens; operations in units of one forward pass of the "
        "blocks. Machine and command: [fidelity](../fidelity.md).\n\n"
        "| model | variant | seconds | peak memory, GB | operations |\n|---|---|---:|---:|---:|"
    )
    return "\n".join([head, *rows])


def _index(criteria: list[Description], allocations: list[Description]) -> str:
    parts = [
        "# Methods",
        "Made by `docs/build_methods.py` from what every method says of itself. Where the words "
        'are "reconstruction" or "-style", the source\'s own formula or code was not at hand.',
        "## Criteria: how important is a group?",
        _listed(criteria, ""),
        "How well they agree with what removing a group truly does, and with each other: "
        "[fidelity](../fidelity.md).",
        "## Allocation: who loses how much?",
        _listed(allocations, "allocation-"),
        "What the cited literature holds and this project does not: [not done, and why]"
        "(../not-done.md).",
    ]
    return "\n\n".join(parts) + "\n"


def _listed(methods: list[Description], prefix: str) -> str:
    return "\n".join(
        f"* [`{each.name}`]({prefix}{each.name}.md): {_words(each.idea)}" for each in methods
    )


def main() -> None:
    """Write all pages and remove those of methods that are gone."""
    PAGES.mkdir(exist_ok=True)
    written = pages()
    for path in PAGES.glob("*.md"):
        if path.name not in written:
            path.unlink()
    for name, text in written.items():
        (PAGES / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
