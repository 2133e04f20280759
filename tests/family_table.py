"""docs/families.md: what was cut from a tiny model of each family, and which class then held it.

``python -m tests.family_table docs/families.md`` writes it; tests/oracles/test_family_table.py
makes every row again.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from bipline.base.errors import InvalidInput
from bipline.compression.prune import prune
from bipline.model.built import transformers_config
from bipline.model.checkpoint import Checkpoint
from bipline.model.families import families
from bipline.model.loading import load_model
from bipline.model.opening import open_checkpoint
from bipline.values.plan import BlockPlan
from tests.looped import sliced_tolerance
from tests.masking import layers_of, silence
from tests.per_layer import plan_of
from tests.tiny import CASES, tiny_model, token_windows

WINDOWS = token_windows(windows=2, seqlen=20)
YES, NO = "yes", "no"
HEAD = """# What was cut from each family

Tiny random models of each family's config (`tests/tiny.py`), in float64. A cell says that
transformers' plain `from_pretrained` loaded what `bipline` wrote and that its logits differ by
less than 1e-10 from the dense model's with the same groups silent: `yes` under the family's own
class, or the class that holds it; `no` where it was refused, by one line. A GLM-4.5 is held to
1e-5, for its router computes in float32. Unequal blocks are of bipline's own classes. Half of the
groups leave a head count that divides hidden_size, three of four one that does not; query heads
are one of two in every group. This page is made by `python -m tests.family_table
docs/families.md`, and each row again by `tests/oracles/test_family_table.py`.

"""
Plan = list[BlockPlan]


def _block(
    checkpoint: Checkpoint, index: int, groups: int, units: float, queries: int = 0
) -> BlockPlan:
    """The last so many groups and share of channels or experts, and the last query heads."""
    shape = checkpoint.shape.block(index)
    held, count = shape.num_key_value_heads, shape.ffn_units
    fewest = max(round(units * count), shape.num_experts_per_tok if shape.num_experts else 0)
    # A first block without experts, beside others that have some, keeps its FFN.
    kept = count if index < checkpoint.shape.dense_blocks else fewest
    block = BlockPlan.keeping(
        tuple(range(held - groups, held)), tuple(range(count - kept, count)),
        bool(shape.num_experts),
    )  # fmt: skip
    last = tuple(range(shape.queries_per_group - queries, shape.queries_per_group))
    return block.model_copy(update={"query_heads": (last,) * groups if queries else ()})


def _all(checkpoint: Checkpoint, groups: int, units: float, queries: int = 0) -> Plan:
    blocks = range(checkpoint.shape.num_hidden_layers)
    return [_block(checkpoint, index, groups, units, queries) for index in blocks]


def _units(checkpoint: Checkpoint) -> Plan:
    return _all(checkpoint, checkpoint.shape.num_key_value_heads, 0.6)


def _half_the_groups(checkpoint: Checkpoint) -> Plan:
    return _all(checkpoint, checkpoint.shape.num_key_value_heads // 2, 1.0)


def _odd_groups(checkpoint: Checkpoint) -> Plan:
    return _all(checkpoint, checkpoint.shape.num_key_value_heads - 1, 1.0)


def _query_heads(checkpoint: Checkpoint) -> Plan:
    return _all(checkpoint, checkpoint.shape.num_key_value_heads, 1.0, 1)


def _block_less(checkpoint: Checkpoint) -> Plan:
    blocks = _all(checkpoint, checkpoint.shape.num_key_value_heads, 1.0)
    return [*blocks[:-1], BlockPlan.keeping((), (), False)]


def _unequal(checkpoint: Checkpoint) -> Plan:
    blocks = _all(checkpoint, checkpoint.shape.num_key_value_heads, 0.6)
    return [_block(checkpoint, 0, 1, 0.4), *blocks[1:]]


Column = Callable[[Checkpoint], Plan]
COLUMNS: dict[str, Column] = {
    "channels or experts": _units,
    "heads that divide": _half_the_groups,
    "heads that do not": _odd_groups,
    "query heads": _query_heads,
    "a block": _block_less,
    "unequal blocks": _unequal,
}


def case_of(model_type: str) -> str:
    """The first case of a family, with several query heads in a group where it has one."""
    cases = [name for name, (each, _) in CASES.items() if each == model_type]
    grouped = [each for each in cases if CASES[each][1].get("num_key_value_heads") == 4]
    return min(grouped or cases, key=lambda each: CASES[each][1].get("num_attention_heads") != 8)


def row(model_type: str, folder: Path) -> dict[str, str]:
    """What became of each cut of a family's model, by its column."""
    model = tiny_model(folder / "model", case_of(model_type))
    return {
        name: _cell(model, plan, name == "unequal blocks", folder / name)
        for name, plan in COLUMNS.items()
    }


def _cell(model: Path, cut: Column, per_layer: bool, out: Path) -> str:
    checkpoint = open_checkpoint(model)
    blocks = cut(checkpoint)
    if checkpoint.shape.queries_per_group == 1 and any(each.query_heads for each in blocks):
        return "none to cut"
    plan = plan_of(checkpoint, blocks, "per-layer" if per_layer else "uniform")
    try:
        prune(checkpoint, plan, out)
    except InvalidInput as refusal:
        assert "\n" not in str(refusal)
        return NO
    largest = _difference(model, checkpoint, plan.blocks, out)
    assert largest < sliced_tolerance(transformers_config(checkpoint.config)), f"{model}: {largest}"
    written = open_checkpoint(out)
    if per_layer:
        return YES
    own = written.config["architectures"] == checkpoint.config["architectures"]
    return YES if own else str(written.config["architectures"][0])


@torch.no_grad()
def _difference(
    model: Path, checkpoint: Checkpoint, blocks: tuple[BlockPlan, ...], out: Path
) -> float:
    """Of logits, the largest: between what was written and the dense model with silent groups."""
    masked = load_model(model, torch.float64)
    silence(masked, checkpoint, blocks)
    for layer, block in zip(layers_of(masked), blocks, strict=True):
        if not (block.attention_groups or block.ffn_channels or block.experts):
            layer.forward = _gives_a_tuple if checkpoint.family.gives_tuple else _gives
    written = load_model(out, torch.float64)
    return float((masked(WINDOWS).logits - written(WINDOWS).logits).abs().max())


def _gives(hidden_states: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
    return hidden_states


def _gives_a_tuple(hidden_states: torch.Tensor, *_: object, **__: object) -> tuple[object, ...]:
    return hidden_states, None


def page() -> str:
    """The whole page."""
    lines = [f"| family | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name in sorted(families()):
        with TemporaryDirectory() as folder:
            cells = row(name, Path(folder))
        lines.append(line(name, cells))
    return HEAD + "\n".join(lines) + "\n"


def line(model_type: str, cells: dict[str, str]) -> str:
    """A row as the page has it."""
    return f"| {model_type} | {' | '.join(cells.values())} |"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page())
