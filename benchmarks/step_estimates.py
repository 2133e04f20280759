"""Seconds that the steps of a run are said to take, beside those that they took.

    python -m benchmarks.step_estimates CONFIG [--markdown FILE]

One run of a configuration on a local stack in a new folder, in this process and on one thread. What
a step took is processor time, which waits for nobody: wall time follows how busy a machine is, and
so a test of either would fail at random. The rate of products is measured by processor time too.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.machine import machine
from bipline.compression.auto import settled_settings
from bipline.model.checkpoint import Checkpoint
from bipline.model.floor import QUICK_TOKENS, USUAL_DISK, Rates
from bipline.model.opening import open_checkpoint
from bipline.settings.loading import KINDS, load
from bipline.stages.step_needs import step_needs
from pipelines.run import run_compress

REPEATS = 20


@dataclass
class Spent:
    """Processor and wall seconds of a step, with all that ZenML does around it."""

    processor: float
    wall: float


def processor_rates(checkpoint: Checkpoint) -> Rates:
    """What one thread computes at a product of the model's, by processor time."""
    shape = checkpoint.shape
    values = torch.ones(QUICK_TOKENS, shape.hidden_size)
    weight = torch.ones(shape.intermediate_size, shape.hidden_size)
    torch.nn.functional.linear(values, weight)
    start = time.process_time()
    for _ in range(REPEATS):
        torch.nn.functional.linear(values, weight)
    seconds = (time.process_time() - start) / REPEATS
    return Rates(USUAL_DISK, USUAL_DISK, 2.0 * values.numel() * shape.intermediate_size / seconds)


@contextmanager
def watching() -> Iterator[dict[str, Spent]]:
    """What every step took that ran within the block, by its name."""
    from zenml.orchestrators.step_launcher import StepLauncher

    found: dict[str, Spent] = {}
    launch = StepLauncher.launch

    def timed(self: Any) -> Any:
        processor, wall = time.process_time(), time.perf_counter()
        try:
            return launch(self)
        finally:
            spent = Spent(time.process_time() - processor, time.perf_counter() - wall)
            found[self._invocation_id] = spent

    StepLauncher.launch = timed  # type: ignore[method-assign]
    try:
        yield found
    finally:
        StepLauncher.launch = launch  # type: ignore[method-assign]


def table(config: Path) -> str:
    """One run, as a table in Markdown."""
    torch.set_num_threads(1)
    settings, _ = settled_settings(load(KINDS["compress"], config))
    checkpoint = open_checkpoint(settings.model)
    rates = processor_rates(checkpoint)
    said = step_needs(settings, checkpoint, rates)
    with TemporaryDirectory() as folder, watching() as spent:
        run_compress(settings.model_copy(update={"state": folder}))
    told = machine(Path(settings.model))
    lines = [
        f"{config.name}, one thread of {told['processor']}, {rates.compute / 1e9:.0f} GFLOP/s by "
        f"processor time; load before {told['load_before']}.",
        "", "| step | said, s | processor, s | said / processor | wall, s |",
        "|---|---:|---:|---:|---:|",
    ]  # fmt: skip
    for name, need in said.items():
        took = spent[name]
        lines.append(
            f"| {name} | {need.seconds:.1f} | {took.processor:.1f} | "
            f"{need.seconds / took.processor:.2f} | {took.wall:.1f} |"
        )
    return "\n".join([*lines, ""])


def main() -> None:
    """Run, and print or write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("config", type=Path)
    parser.add_argument("--markdown", type=Path)
    given = parser.parse_args()
    found = table(given.config)
    print(found)
    if given.markdown:
        given.markdown.write_text(found, encoding="utf-8")


if __name__ == "__main__":
    main()
