"""The tables of ``benchmarks.fidelity``."""

from __future__ import annotations

from typing import Any

from benchmarks.tables import Section, Table

PROPAGATION = ("wanda-sp", "llm-bip", "llm-bip-glu", "llm-bip-adjoint", "llm-bip-exact")
TITLES = {"attention_groups": "attention groups", "ffn_channels": "FFN channels"}


def sections(results: dict[str, Any]) -> list[Section]:
    """For every model: agreement with the truth, agreement between criteria, and cost."""
    return [Section(values, _tables(model, values)) for model, values in results.items()]


def _tables(model: str, values: dict[str, Any]) -> tuple[Table, ...]:
    kinds = [kind for kind in TITLES if _measured(values, kind)]
    return (
        *(_agreement(model, values, kind) for kind in kinds),
        _propagation(model, values),
        _costs(model, values),
        *(_between(model, values, kind) for kind in kinds),
    )


def _measured(values: dict[str, Any], kind: str) -> bool:
    return bool(values["truth"][kind])


def _agreement(model: str, values: dict[str, Any], kind: str) -> Table:
    columns = (
        "output_pooled", "output_mean", "loss_pooled", "loss_mean", "loss_size_pooled",
        "loss_size_mean",
    )  # fmt: skip
    titles = (
        "block output, pooled", "mean over blocks", "model loss, pooled", "mean over blocks",
        "size of loss change, pooled", "mean over blocks",
    )  # fmt: skip
    found = {name: each[kind] for name, each in values["agreement"].items()}
    order = sorted(found, key=lambda name: -found[name]["output_mean"])
    rows = [(name, *(f"{found[name][column]:.3f}" for column in columns)) for name in order]
    removed = values["truth"][kind]
    title = f"{model}: rank correlation with the true change, {removed} {TITLES[kind]}"
    return Table(title, ("criterion", *titles), tuple(rows))


def _propagation(model: str, values: dict[str, Any]) -> Table:
    """LLM-BIP's propagation beside Wanda-sp, which is its first half, and what both aim at."""
    names = [name for name in PROPAGATION if name in values["heads_by_block"]]
    found = [values["heads_by_block"][name] for name in names]
    rows = [
        (f"block {block}", *(f"{value:.3f}" for value in row))
        for block, row in enumerate(zip(*found, strict=True))
    ]
    title = f"{model}: heads inside each block, rank correlation with the change of its output"
    return Table(title, ("", *names), tuple(rows))


def _costs(model: str, values: dict[str, Any]) -> Table:
    rows = [
        (
            name,
            cost["needs"],
            f"{cost['seconds']:.1f}",
            f"{cost['peak_anonymous_bytes'] / 1e9:.2f}",
            f"{cost['forward_passes']:.2f}",
        )
        for name, cost in values["costs"].items()
    ]
    columns = ("criterion", "needs", "seconds", "peak memory, GB", "operations, forward passes")
    return Table(f"{model}: cost of scoring", columns, tuple(rows))


def _between(model: str, values: dict[str, Any], kind: str) -> Table:
    names = list(values["agreement"])
    held = {tuple(pair.split(" | ")): each[kind] for pair, each in values["between"].items()}

    def cell(one: str, other: str) -> str:
        found = held.get((one, other), held.get((other, one)))
        return "" if found is None else f"{found:.2f}"

    rows = tuple((name, *(cell(name, other) for other in names)) for name in names)
    title = f"{model}: rank correlation between criteria, {TITLES[kind]} of all blocks"
    return Table(title, ("", *names), rows)
