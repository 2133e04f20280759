"""What compensation costs at a real shape: memory, operations and seconds of one block, by part.

    python -m benchmarks.compensation_cost --folder FOLDER --json FILE

One block of a random checkpoint of the shape is compensated as ``obs``, sequentially, on the
fewest windows that are allowed. The other stream is the dense one and noise, in place of what
blocks pruned before would have left. ``--windows`` takes fewer windows than compensation would:
passes and measuring are then cheaper in proportion, and the fits and the memory stay the same.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.machine import ProcessorTime, described, machine
from benchmarks.shapes import random_checkpoint
from benchmarks.tables import Section, Table, gigabytes_text, seconds_text
from bipline.compression.compensation import (
    block_fit,
    collecting,
    engine,
    fitting,
    held_out,
    moments,
    streams,
    tokens,
    triangles,
)
from bipline.compression.compensation.drawn_windows import Division, random_windows
from bipline.compression.compensation.memory import compensation_bytes
from bipline.compression.compensation.operations import Operations, Work, operations_of
from bipline.compression.compensation.options import CompensationOptions
from bipline.compression.computing import Computing
from bipline.model.checkpoint import Checkpoint
from bipline.model.floor import compute_rate
from bipline.model.loading import import_libraries
from bipline.model.memory import memory_need, watching_memory
from bipline.model.opening import open_checkpoint
from bipline.model.products import quick_float32
from bipline.values.plan import BlockPlan, Budget, PruningPlan

TARGET_BYTES = 8_000_000_000
SEQLEN = 128
# Two, so that there is a next block to be read ahead; the first is compensated.
BLOCKS = 2
VOCABULARY = 4096
# Of the dense stream's root mean square: what the pruned blocks before have changed.
NOISE = 0.1
RATE_TOKENS = 256
FLOAT64 = ("factors", "inverse", "elimination")
# What is timed, by part; a part's time is its own, without the parts inside it.
TIMED: tuple[tuple[str, Any, str], ...] = (
    ("moments", moments.MomentSums, "add"),
    ("moments", moments.MomentSums, "moments"),
    ("factors", triangles.Triangles, "factor"),
    ("solves", triangles.Triangles, "solve_"),
    ("inverse", triangles.Triangles, "invert"),
    ("elimination", fitting, "remove_greedily"),
    ("start of OBS", fitting, "elimination_of"),
    ("sides", fitting, "LeastSquares"),
    ("versions", fitting, "corrected"),
    ("held-out windows", held_out.HeldOut, "attention_errors"),
    ("held-out windows", held_out.HeldOut, "ffn_errors"),
    ("held-out windows", held_out.HeldOut, "block_error"),
    ("kept rows", block_fit, "fitted_rows"),
    ("passes", streams.Streams, "advance_attention"),
    ("passes", streams.Streams, "advance_ffn"),
    ("passes", streams.Streams, "pass_attention"),
    ("passes", streams.Streams, "advance_pruned"),
    ("passes", collecting.Collector, "take"),
)


class Parts:
    """Seconds by part, each without those of the parts inside it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._inner = [0.0]

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, its time added to a part."""

        def run(*args: Any, **kwargs: Any) -> Any:
            self._inner.append(0.0)
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                passed = time.perf_counter() - start
                own = passed - self._inner.pop()
                self.seconds[part] = self.seconds.get(part, 0.0) + own
                self._inner[-1] += passed
                print(f"{part}: {own:.1f} s", flush=True) if passed > 5 else None

        return run

    def watch(self) -> None:
        """Time everything that is to be timed, for the rest of this process."""
        for part, owner, name in TIMED:
            setattr(owner, name, self.timed(part, getattr(owner, name)))


@quick_float32()
def main() -> None:
    """Compensate one block, print the tables, and write the JSON."""
    given = _arguments()
    import_libraries()
    model = given.folder / f"{given.shape}-blocks-{BLOCKS}-vocabulary-{VOCABULARY}"
    sizes = {"num_hidden_layers": BLOCKS, "vocab_size": VOCABULARY}
    random_checkpoint(model, given.shape, **sizes)
    facts, others = machine(given.folder), ProcessorTime()
    values = _measured(open_checkpoint(model), given)
    facts |= others.shares()
    section = Section(values, _tables(values), (*described(facts),))
    section.show(Console(width=120))
    text = json.dumps({"machine": facts, **values}, indent=1)
    given.json.write_text(text + "\n", encoding="utf-8")


def _measured(checkpoint: Checkpoint, given: argparse.Namespace) -> dict[str, Any]:
    options = CompensationOptions(ridge_factors=given.ridge_factors)
    token_ids = _windows(checkpoint, options, given.windows)
    counts = _tokens(token_ids, options)
    computing, parts = Computing(), Parts()
    need = memory_need(computing.loop(checkpoint), token_ids, logits=False)
    rates = {
        name: compute_rate(Computing(dtype).loop(checkpoint), RATE_TOKENS)
        for name, dtype in (("float32", torch.float32), ("float64", torch.float64))
    }
    plan = _plan(checkpoint, given.ratio)
    parts.watch()
    with watching_memory() as peak:
        start = time.perf_counter()
        record = _compensated(checkpoint, plan, token_ids, computing, options)
        seconds = time.perf_counter() - start
    predicted = compensation_bytes(checkpoint.shape, "obs", options, 2, 4, given.ratio)
    work = Work(checkpoint.shape, given.ratio, *counts, options)
    default = CompensationOptions()
    usual = _tokens(_windows(checkpoint, default, None), default)
    return {
        "shape": given.shape,
        "ratio": given.ratio,
        "options": options.to_json_value(),
        "fitted_tokens": counts[0],
        "held_out_tokens": counts[1],
        "peak_anonymous_bytes": peak.anonymous,
        "peak_resident_bytes": peak.resident,
        "target_bytes": TARGET_BYTES,
        "predicted_bytes": {
            "compensation": predicted,
            "two_streams": 2 * sum(counts) * need.hidden_states // token_ids.numel(),
            "block_loop": need.least,
        },
        "seconds": seconds,
        "seconds_by_part": parts.seconds,
        "operations_per_second": rates,
        "operations": operations_of(work),
        "least_allowed": {
            "fitted_tokens": usual[0],
            "held_out_tokens": usual[1],
            "operations": operations_of(Work(checkpoint.shape, given.ratio, *usual, default)),
        },
        "record": record,
    }


def _tokens(token_ids: torch.Tensor, options: CompensationOptions) -> tuple[int, int]:
    """Tokens that are fitted on, with as many drawn ones as may be, and those held out."""
    windows = _divided(token_ids, options)
    return windows.tokens - windows.held.numel(), windows.held.numel()


def _divided(token_ids: torch.Tensor, options: CompensationOptions) -> Division:
    """Windows of random tokens for the generated ones too: they cost the same to be fitted on."""
    fitted, held = streams.divided(token_ids, options.held_out)
    shares = options.random_windows, options.generated_windows
    return Division(fitted, held, *(random_windows(fitted, each, VOCABULARY) for each in shares))


def _windows(checkpoint: Checkpoint, options: CompensationOptions, asked: int | None) -> Any:
    # Fewer than compensation asks for do: fits do not depend on their number, nor does most memory.
    count = asked or tokens.least_samples(checkpoint.shape, SEQLEN, options.held_out)
    generator = torch.Generator().manual_seed(0)
    return torch.randint(checkpoint.shape.vocab_size, (count, SEQLEN), generator=generator)


def _compensated(
    checkpoint: Checkpoint,
    plan: PruningPlan,
    token_ids: torch.Tensor,
    computing: Computing,
    options: CompensationOptions,
) -> Any:
    windows = _divided(token_ids, options)
    running = engine._Engine(checkpoint, plan, windows, computing, "obs", options, None)
    for number, each in enumerate(running.all):
        generator = torch.Generator().manual_seed(number)
        each._other.advance(lambda _, chunk, drawn=generator: _noisy(chunk, drawn))
    # One block: taking the next would show nothing else.
    correction = running.correct(next(iter(running.loop.blocks())))
    return correction.record.model_dump(mode="json")


def _noisy(chunk: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    scale = NOISE * chunk.square().mean().sqrt()
    return chunk + scale * torch.randn(chunk.shape, generator=generator)


def _plan(checkpoint: Checkpoint, ratio: float) -> PruningPlan:
    """Groups and channels evenly spread; the choice does not matter to the cost."""
    shape = checkpoint.shape

    def spread(count: int) -> tuple[int, ...]:
        there = count - int(ratio * count)
        return tuple(place * count // there for place in range(there))

    block = BlockPlan(
        attention_groups=spread(shape.num_key_value_heads),
        ffn_channels=spread(shape.intermediate_size),
    )
    return PruningPlan(
        tensor_digest=checkpoint.tensor_digest,
        criterion="none",
        allocation="by hand",
        budget=Budget(asked=ratio, of="blocks", reached_blocks=ratio, reached_total=ratio),
        ffn_multiple=1,
        blocks=(block,) * BLOCKS,
    )


def _tables(values: dict[str, Any]) -> tuple[Table, ...]:
    return _memory_table(values), _seconds_table(values)


def _memory_table(values: dict[str, Any]) -> Table:
    predicted, least = values["predicted_bytes"], values["least_allowed"]
    rows = [(name.replace("_", " "), size) for name, size in predicted.items()]
    counts = [each["fitted_tokens"] + each["held_out_tokens"] for each in (values, least)]
    # Hidden states of both streams grow with the tokens; nothing else does.
    per_token = predicted["two_streams"] / counts[0]
    peak = values["peak_anonymous_bytes"]
    rows += [
        ("predicted in all", sum(predicted.values())),
        (f"peak, anonymous, {counts[0]:,} tokens", peak),
        ("peak, resident", values["peak_resident_bytes"]),
        (f"peak of {counts[1]:,} tokens, computed", peak + per_token * (counts[1] - counts[0])),
        ("to stay within", values["target_bytes"]),
    ]
    cells = tuple((name, gigabytes_text(size)) for name, size in rows)
    return Table(f"{values['shape']}: memory of one block", ("", "bytes"), cells)


def _seconds_table(values: dict[str, Any]) -> Table:
    rates, least = values["operations_per_second"], values["least_allowed"]["operations"]

    def floor(operations: Operations, part: str) -> float:
        parts = operations.get(part, 0.0)
        return parts / rates["float64" if part in FLOAT64 else "float32"]

    rows, totals = [], [0.0, 0.0, 0.0]
    for part, seconds in sorted(values["seconds_by_part"].items(), key=lambda each: -each[1]):
        figures = [seconds, floor(values["operations"], part), floor(least, part)]
        totals = [a + b for a, b in zip(totals, figures, strict=True)]
        rows.append((part, *map(seconds_text, figures)))
    rows.append(("all", *map(seconds_text, [values["seconds"], *totals[1:]])))
    columns = ("part", "seconds", "floor", "floor, least allowed")
    return Table(f"{values['shape']}: seconds of one block", columns, tuple(rows))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="what compensation of one block costs")
    parser.add_argument("--folder", type=Path, default=Path("build/benchmarks"))
    parser.add_argument("--shape", default="llama-3-8b")
    parser.add_argument("--ratio", type=float, default=0.3)
    parser.add_argument("--windows", type=int, help="fewer than compensation allows")
    parser.add_argument(
        "--ridge-factors",
        type=lambda text: tuple(map(float, text.split(","))),
        default=CompensationOptions().ridge_factors,
    )
    parser.add_argument("--json", type=Path, default=Path("benchmarks/compensation_cost.json"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
