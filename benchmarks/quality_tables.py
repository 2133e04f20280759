"""The standing table: cells of quality comparisons as markdown, cell by cell against the best."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from benchmarks.machine import described
from bipline.values.comparison import Comparison, Row

AUTO = "auto"
# Published compensations that choose the groups themselves.
PEERS = ("osscar", "slimgpt")


@dataclass(frozen=True)
class Cell:
    """One row of a comparison, as the tables need it. Texts map to perplexity and change of NLL."""

    model: str
    layout: str
    ratio: float
    method: str
    published_as: str
    reached: float
    widths: str
    perplexity: dict[str, float]
    nll_change: dict[str, float]
    dense: dict[str, float]
    seconds: float

    @classmethod
    def of(cls, model: str, layout: str, row: Row, comparison: Comparison) -> Cell | None:
        """The cell of a measured row; None for one that was refused."""
        found, tried = row.measured, row.combination
        if found is None:
            return None
        dense = comparison.models[tried.model].record.perplexity
        criterion, compensation = tried.criterion.label, tried.compensation.label
        published_as = compensation if compensation in PEERS else f"{criterion}/{compensation}"
        allocated = "" if tried.allocation.name == "uniform" else f", {tried.allocation.label}"
        compensated = "" if compensation == "none" else f" + {compensation}"
        method = f"{criterion}{allocated}{compensated}"
        if compensation in PEERS:
            # It chooses the groups itself: scores serve at most for widths.
            at_autos = tried.allocation.name == "compensated"
            method = f"{compensation}, auto's widths" if at_autos else f"{compensation}{allocated}"
        return cls(
            model=model,
            layout=layout,
            ratio=tried.ratio,
            method=AUTO if tried.alias == AUTO else method,
            published_as=published_as,
            reached=found.ratio.reached_blocks,
            widths=_widths(found.widths),
            perplexity={name: each.value for name, each in found.perplexity.items()},
            nll_change={name: each.nll for name, each in found.change.items()},
            dense={name: each.value for name, each in dense.items()},
            seconds=sum(row.cost.seconds.values()) - row.cost.seconds.get("evaluate", 0.0),
        )

    @property
    def place(self) -> tuple[str, str, float, str]:
        """What a cell is of."""
        return self.model, self.layout, self.ratio, self.method

    def increase(self, text: str) -> float:
        """Of perplexity over dense."""
        return self.perplexity[text] - self.dense[text]


def merged(cells: Iterable[Cell]) -> list[Cell]:
    """One cell of each place: what was measured later, and the texts it was not measured on."""
    found: dict[tuple[str, str, float, str], Cell] = {}
    for cell in cells:
        before = found.get(cell.place)
        if before and before.widths == cell.widths:
            texts = {
                name: {**getattr(before, name), **getattr(cell, name)}
                for name in ("perplexity", "nll_change", "dense")
            }
            cell = replace(cell, **texts)
        found[cell.place] = cell
    return list(found.values())


def standing_table(cells: list[Cell], published: set[str], facts: dict[str, object]) -> str:
    """The summary of auto against the best published row, then a table a model and layout."""
    parts = ["\n".join(f"* {line}" for line in described(facts)[:-1]), _summary(cells, published)]
    for key in dict.fromkeys((cell.model, cell.layout) for cell in cells):
        held = [cell for cell in cells if (cell.model, cell.layout) == key]
        parts.append(_table(f"{key[0]}, {key[1]} layout", held))
    return "\n\n".join(parts)


def _summary(cells: list[Cell], published: set[str]) -> str:
    """Per cell: auto's increase, the best published row's, their ratio, and the lowest of all."""
    lines = [
        "### auto against the best published row",
        "",
        "| model | layout | ratio | text | dense | best published | auto | increase, share of it "
        "| lowest of all rows | auto above it |",
        "|---|---|---:|---|---:|---|---:|---:|---|---:|",
    ]
    for (model, layout, ratio), held in _grouped(cells).items():
        autos = [cell for cell in held if cell.method == AUTO]
        known = [cell for cell in held if cell.published_as in published and cell.method != AUTO]
        if not (autos and known):
            continue
        for text in autos[0].perplexity:
            measured = [[c for c in some if text in c.perplexity] for some in (autos, known, held)]
            if not all(measured):
                continue
            auto, best, lowest = (
                min(some, key=lambda cell: cell.perplexity[text]) for some in measured
            )
            share = auto.increase(text) / best.increase(text)
            above = auto.perplexity[text] / lowest.perplexity[text] - 1
            lines.append(
                f"| {model} | {layout} | {ratio:g} | {text} | {auto.dense[text]:.2f} "
                f"| {best.perplexity[text]:.2f} ({best.method}) | {auto.perplexity[text]:.2f} "
                f"| **{share:.2f}** | {lowest.perplexity[text]:.2f} ({lowest.method}) "
                f"| {100 * above:.1f} % |"
            )
    return "\n".join(lines)


def _table(title: str, cells: list[Cell]) -> str:
    widest = max(cells, key=lambda cell: len(cell.perplexity))
    texts = list(widest.perplexity)
    head = ["ratio", "method", "reached", "groups / channels kept"]
    for text in texts:
        head += [f"{text}: perplexity", "increase", "change of NLL"]
    lines = [f"### {title}", "", _line([*head, "seconds"]), _line(["---"] * (len(head) + 1))]
    lines.append(_line(["0", "dense", "", "", *_dense(widest, texts), ""]))
    for (_, _, ratio), held in _grouped(cells).items():
        for cell in sorted(held, key=lambda each: each.perplexity[texts[0]]):
            numbers = [part for text in texts for part in _numbers(cell, text)]
            start = [f"{ratio:g}", cell.method, f"{cell.reached:.3f}", cell.widths]
            lines.append(_line([*start, *numbers, f"{cell.seconds:.0f}"]))
    return "\n".join(lines)


def _numbers(cell: Cell, text: str) -> list[str]:
    if text not in cell.perplexity:
        return ["", "", ""]
    return [
        f"{cell.perplexity[text]:.2f}", f"{cell.increase(text):+.2f}",
        f"{cell.nll_change[text]:+.4f}",
    ]  # fmt: skip


def _dense(cell: Cell, texts: Iterable[str]) -> list[str]:
    return [part for text in texts for part in (f"{cell.dense[text]:.2f}", "", "")]


def _line(parts: list[str]) -> str:
    return f"| {' | '.join(parts)} |"


def _grouped(cells: list[Cell]) -> dict[tuple[str, str, float], list[Cell]]:
    found: dict[tuple[str, str, float], list[Cell]] = {}
    for cell in cells:
        found.setdefault((cell.model, cell.layout, cell.ratio), []).append(cell)
    return found


def _widths(widths: tuple[tuple[int, int], ...]) -> str:
    def span(counts: Callable[[tuple[int, int]], int]) -> str:
        low, high = min(map(counts, widths)), max(map(counts, widths))
        return str(low) if low == high else f"{low} to {high}"

    return f"{span(lambda pair: pair[0])} / {span(lambda pair: pair[1])}"
