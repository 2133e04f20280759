"""The obvious way to do the same: load the whole model, hook it, slice it in memory, save it.

What it computes is the project's own: the same windows, sums and scores, the same choice of what
stays. What differs is how: transformers loads, runs and saves all of the model at once. Where that
costs nothing it is spared work: the output head is not run, and a block's sums are taken in
micro-batches of the same size. It does not hash, check or write anything but the model.

    python -m benchmarks.hooked_baseline MODEL OUT --ratio 0.5 --samples 10 --json FILE
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.running import CALIBRATION, SEQLEN
from bipline.compression.allocate import allocate
from bipline.compression.calibrate import calibrate
from bipline.compression.criteria import Criterion, load_criterion
from bipline.compression.criteria.interface import Block, BlockScores, Options, Tokens
from bipline.compression.partial_sums import Accumulator, reduce_chunks
from bipline.compression.slicing import kept_indices
from bipline.compression.statistics import Scores
from bipline.model.block_loop import Activations, micro_batch_of
from bipline.model.checkpoint import Checkpoint
from bipline.model.families import block_axes, build_of, exported_config
from bipline.model.loading import import_libraries, load_model
from bipline.model.memory import watching_memory
from bipline.model.opening import open_checkpoint
from bipline.settings.line import AllocateSettings
from bipline.values.plan import PruningPlan


@dataclass
class Clock:
    """Seconds by stage."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """The block is this stage."""
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 3)


def main() -> None:
    """Prune a model the obvious way, and write seconds, memory and the plan as JSON."""
    parser = argparse.ArgumentParser(description="Prune with hooks on a model held in memory.")
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--criterion", default="llm-bip-glu")
    parser.add_argument("--ratio", type=float, required=True)
    parser.add_argument("--samples", type=int, required=True)
    parser.add_argument("--json", type=Path, required=True)
    given = parser.parse_args()
    import_libraries()
    clock = Clock()
    with watching_memory() as peak:
        plan = prune(given.model, given.out, given.criterion, given.ratio, given.samples, clock)
    found = {
        "stage_seconds": clock.seconds,
        "total_seconds": round(sum(clock.seconds.values()), 3),
        "peak_anonymous_bytes": peak.anonymous,
        "peak_resident_bytes": peak.resident,
        "plan": plan.model_dump(mode="json"),
    }
    given.json.write_text(json.dumps(found) + "\n", encoding="utf-8")


@torch.no_grad()
def prune(
    source: Path, out: Path, criterion: str, ratio: float, samples: int, clock: Clock
) -> PruningPlan:
    """Load, run, score, slice and save; ``clock`` takes the seconds of each."""
    checkpoint = open_checkpoint(source)  # its headers only, for sizes and names
    chosen = load_criterion(criterion)
    with clock.stage("calibrate"):
        folder = checkpoint.folder
        token_ids = calibrate(folder, [(CALIBRATION, 1.0)], samples, SEQLEN, 0).token_ids
    with clock.stage("load"):
        model = load_model(source, torch.bfloat16)
    with clock.stage("forward"):
        sums = _run(model, checkpoint, chosen, token_ids)
    with clock.stage("score"):
        scores = _scores(model, checkpoint, chosen, sums)
        given = Scores("", criterion, tuple(scores))
        plan = allocate(checkpoint, given, AllocateSettings(ratio=ratio), 0)
    with clock.stage("slice"):
        _slice(model, checkpoint, plan)
    with clock.stage("save"):
        _pruned_model(model, checkpoint, plan).save_pretrained(out, max_shard_size="5GB")
    with clock.stage("flush"):
        _flush(out)
    return plan


def _run(
    model: Any, checkpoint: Checkpoint, criterion: Criterion, token_ids: torch.Tensor
) -> list[Accumulator]:
    """Run the windows through the hooked decoder; the sums of every block."""
    sums = []
    for index, layer in enumerate(model.model.layers):
        block = Block(index, checkpoint.shape, {})
        sums.append(_hook(layer, block, checkpoint, criterion))
    for part in token_ids.split(micro_batch_of(SEQLEN, None)):
        model.model(input_ids=part, use_cache=False)
    return sums


def _hook(
    layer: nn.Module, block: Block, checkpoint: Checkpoint, criterion: Criterion
) -> Accumulator:
    """Catch what a block shows; when its last tensor is there, take the sums and forget it."""
    sums, seen = Accumulator(), Activations()
    observed = build_of(checkpoint.family).observed

    def catch(name: str, value: torch.Tensor) -> None:
        seen[name] = value.flatten(0, 1)
        if len(seen) == len(observed):
            sums.add(len(sums.chunks), criterion.observe(block, Tokens(seen, SEQLEN), Options()))
            seen.clear()

    for name, (place, side) in observed.items():
        module = layer.get_submodule(place)
        if side == "input":
            module.register_forward_pre_hook(_input_hook(name, catch))
        else:
            module.register_forward_hook(_output_hook(name, catch))
    return sums


def _input_hook(name: str, catch: Callable[[str, torch.Tensor], None]) -> Callable[..., None]:
    return lambda _module, inputs: catch(name, inputs[0])


def _output_hook(name: str, catch: Callable[[str, torch.Tensor], None]) -> Callable[..., None]:
    return lambda _module, _inputs, output: catch(name, output)


def _scores(
    model: Any, checkpoint: Checkpoint, criterion: Criterion, sums: list[Accumulator]
) -> list[BlockScores]:
    scores = []
    for index, layer in enumerate(model.model.layers):
        block = Block(index, checkpoint.shape, dict(layer.named_parameters()))
        scores.append(criterion.score(reduce_chunks(sums[index].chunks), block, Options()))
    return scores


def _slice(model: Any, checkpoint: Checkpoint, plan: PruningPlan) -> None:
    """Replace every weight by what the plan keeps of it, block by block, letting the old one go."""
    axes = block_axes(checkpoint.family, checkpoint.config)
    for layer, block in zip(model.model.layers, plan.blocks, strict=True):
        kept = kept_indices(block, checkpoint.shape)
        for name, weight in dict(layer.named_parameters()).items():
            place, _, local = name.rpartition(".")
            smaller = weight
            for dimension, axis in enumerate(axes[name]):
                if axis in kept:
                    smaller = smaller.index_select(dimension, kept[axis])
            setattr(layer.get_submodule(place), local, nn.Parameter(smaller, requires_grad=False))


def _pruned_model(model: Any, checkpoint: Checkpoint, plan: PruningPlan) -> Any:
    """The sliced weights under a class that holds them, which need not be the model's own.

    Where the heads that stay no longer divide hidden_size, LLaMA's class refuses them and
    Mistral's, which names the same tensors, takes them.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    block = plan.blocks[0]
    groups, channels = len(block.attention_groups), len(block.ffn_channels)
    values = exported_config(checkpoint.config, channels, groups)
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    with torch.device("meta"):
        smaller = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    smaller.load_state_dict(model.state_dict(), assign=True)
    return smaller


def _flush(out: Path) -> None:
    """Have the files on the disk, as the other side of the comparison has them."""
    for path in out.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


if __name__ == "__main__":
    main()
