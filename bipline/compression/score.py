"""Score: one forward pass over the calibration windows, block by block.

While a block is resident its sums are taken, added up and turned into scores, so every weight is
read once. With a work directory each finished block is recorded, and a killed run goes on there
to the same bytes. The windows may be divided: among processes (:mod:`.workers`), or among steps
whose partial statistics are reduced later (:func:`score_part`, :func:`reduce_parts`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from bipline.base.errors import InvalidInput
from bipline.base.progress import track
from bipline.compression.criteria import (
    Criterion,
    check_scores_experts,
    load_criterion,
    needs_of,
    unmet_needs,
)
from bipline.compression.criteria.interface import Block, BlockScores, Options, Sums
from bipline.compression.criteria.needs import GRADIENTS
from bipline.compression.criteria.search import Search
from bipline.compression.forward_pass import ForwardPass, Observe
from bipline.compression.gradient_sums import check_windows, gradient_sums
from bipline.compression.partial_sums import (
    ChunkSums,
    check_finite,
    reduce_chunks,
    share_of,
    windows_of,
)
from bipline.compression.score_progress import BlockOutcome
from bipline.compression.statistics import (
    Scores,
    Statistics,
    empty_statistics,
    statistics_of,
)
from bipline.compression.windows import Windows
from bipline.compression.workers import Workers
from bipline.model.block_loop import Block as LoopBlock
from bipline.model.checkpoint import Checkpoint
from bipline.model.products import quick_float32


@quick_float32()
def score_model(
    checkpoint: Checkpoint,
    windows: Windows,
    criterion: str,
    options: Options,
    work: Path | None = None,
    workers: Workers | None = None,
) -> tuple[Statistics, Scores]:
    """Sums and scores of every block; ``work`` is where finished blocks are kept.

    A criterion that needs the weights alone reads no windows.
    Raises InvalidInput where the model's activations are not finite, and where windows cannot be
    divided among workers.
    """
    check_scores_experts(criterion, checkpoint.shape)
    needs, workers = needs_of(criterion), workers or Workers()
    if workers.count > 1 and needs.windows:
        check_shared(criterion)
    if work is None and not windows.computing.resident:
        with TemporaryDirectory(prefix="bipline-") as folder:
            return score_model(checkpoint, windows, criterion, options, Path(folder), workers)
    if not needs.windows:
        statistics = empty_statistics(checkpoint)
        scores = _scores_of(checkpoint, criterion, options, statistics.blocks)
        return statistics, _named(scores, statistics, criterion, options)
    run = _Run(checkpoint, windows, criterion, options, work)
    if needs == GRADIENTS:
        return run.by_gradients()
    return run.forward(workers) if needs.sums else run.by_search()


@quick_float32()
def score_part(
    checkpoint: Checkpoint,
    windows: Windows,
    criterion: str,
    options: Options,
    part: tuple[int, int],
    work: Path | None = None,
) -> Statistics:
    """The sums of part ``(index, count)`` of the windows, chunk by chunk, not yet added up.

    Its sums are named ``CHUNK.NAME``; :func:`reduce_parts` adds those of all parts.
    Raises InvalidInput when there are fewer chunks than parts, or the criterion's work cannot be
    divided.
    """
    check_scores_experts(criterion, checkpoint.shape)
    check_shared(criterion)
    own = share_of(len(windows.token_ids), *part)

    def finish(block: LoopBlock, chunks: ChunkSums) -> BlockOutcome:
        sums = {f"{n}.{name}": value for n, held in chunks.items() for name, value in held.items()}
        check_finite(sums, block.index)
        return sums, None

    token_ids, computing = windows_of(windows.token_ids, own), windows.computing
    observe = Observe(load_criterion(criterion), options)
    forward = ForwardPass(checkpoint, token_ids, own, observe, computing, work, Workers())
    blocks = tuple(sums for sums, _ in forward.run(finish))
    return statistics_of(checkpoint, windows.digest, computing.dtype_name, blocks)


def reduce_parts(parts: Sequence[Statistics]) -> Statistics:
    """Add the chunks of all parts in their order: the statistics that one pass would give.

    Raises InvalidInput when parts are of different models, windows or dtypes.
    """
    first = parts[0]
    for part in parts:
        for name in ("tensor_digest", "calibration_digest", "dtype"):
            if getattr(part, name) != getattr(first, name):
                raise InvalidInput(f"parts of the statistics differ in their {name}")
    blocks = tuple(_reduced([part.blocks[i] for part in parts]) for i in range(len(first.blocks)))
    return Statistics(
        first.tensor_digest, first.calibration_digest, first.dtype, blocks, first.tensors
    )


@quick_float32()
def compute_scores(
    checkpoint: Checkpoint, statistics: Statistics, criterion: str, options: Options
) -> Scores:
    """Turn sums into scores; needs the weights once and no forward pass.

    Raises InvalidInput when the sums are of another model or lack what the criterion needs.
    """
    check_scores_experts(criterion, checkpoint.shape)
    hold_to_model(checkpoint, statistics)
    chosen = load_criterion(criterion)
    for sums in statistics.blocks:
        if missing := unmet_needs(chosen, options, sums):
            raise InvalidInput(
                f"criterion {criterion} needs the sums {', '.join(missing)}, which the "
                "statistics do not hold; score again"
            )
    scores = _scores_of(checkpoint, criterion, options, statistics.blocks)
    return _named(scores, statistics, criterion, options)


def hold_to_model(checkpoint: Checkpoint, statistics: Statistics) -> None:
    """Have every tensor that is read from now on compared with the one the sums were taken on.

    Raises InvalidInput at once where a difference is known already.
    """
    refusal = f"the statistics are of model {statistics.tensor_digest[:12]}, not of this one"
    if statistics.tensors:
        if set(statistics.tensors) != set(checkpoint.tensors):
            raise InvalidInput(f"{refusal}: its tensors have other names")
        checkpoint.digests.expect(statistics.tensors, refusal)
    elif statistics.tensor_digest != checkpoint.tensor_digest:
        raise InvalidInput(refusal)


def check_shared(criterion: str) -> None:
    """Raise InvalidInput where several workers cannot share a criterion's windows."""
    needs = needs_of(criterion)
    if not needs.shareable:
        raise InvalidInput(
            f"criterion {criterion} needs {needs.name}, whose work cannot be divided among "
            "workers; run it in one process, with parts: 1"
        )


@dataclass(frozen=True)
class _Run:
    """One scoring of a model whose windows are run, in the way that the criterion needs."""

    checkpoint: Checkpoint
    windows: Windows
    criterion: str
    options: Options
    work: Path | None

    def forward(self, workers: Workers) -> tuple[Statistics, Scores]:
        """One forward pass, each worker with its share of the windows."""
        chosen, samples = load_criterion(self.criterion), len(self.windows.token_ids)
        everybody, own = share_of(samples, 0, 1), share_of(samples, workers.rank, workers.count)

        def finish(block: LoopBlock, chunks: ChunkSums) -> BlockOutcome:
            sums = reduce_chunks(workers.gather(chunks, everybody))
            check_finite(sums, block.index)
            return sums, _block_scores(chosen, sums, _source_block(block), self.options)

        token_ids = windows_of(self.windows.token_ids, own)
        observe = Observe(chosen, self.options)
        computing = self.windows.computing
        finished = ForwardPass(
            self.checkpoint, token_ids, own, observe, computing, self.work, workers
        ).run(finish)
        found = [scores for _, scores in finished if scores is not None]
        return self._finished([sums for sums, _ in finished], found)

    def by_gradients(self) -> tuple[Statistics, Scores]:
        """A backward pass. Raises InvalidInput for too few windows."""
        chosen, token_ids = load_criterion(self.criterion), self.windows.token_ids
        check_windows(self.criterion, self.options, len(token_ids))
        found: dict[int, tuple[Sums, BlockScores]] = {}
        computing = self.windows.computing
        for block, sums in gradient_sums(self.checkpoint, token_ids, computing, self.work):
            found[block.index] = sums, _block_scores(chosen, sums, block, self.options)
        blocks, scores = zip(*(found[index] for index in sorted(found)), strict=True)
        return self._finished(blocks, scores)

    def by_search(self) -> tuple[Statistics, Scores]:
        """Many passes, which leave scores and no sums."""

        def score(criterion: str, options: Options) -> Sequence[BlockScores]:
            return score_model(self.checkpoint, self.windows, criterion, options)[1].blocks

        loop = self.windows.computing.loop(self.checkpoint)
        searching = Search(loop, self.windows.token_ids, score)
        found = load_criterion(self.criterion).search(searching, self.options)
        return self._finished([{} for _ in found], found)

    def _finished(
        self, blocks: Sequence[Sums], scores: Sequence[BlockScores]
    ) -> tuple[Statistics, Scores]:
        dtype = self.windows.computing.dtype_name
        statistics = statistics_of(self.checkpoint, self.windows.digest, dtype, tuple(blocks))
        return statistics, _named(scores, statistics, self.criterion, self.options)


def _source_block(block: LoopBlock) -> Block:
    return Block.of(block.loop.checkpoint, block.index, block.source_weights())


def _block_scores(criterion: Criterion, sums: Sums, block: Block, options: Options) -> BlockScores:
    """One block's scores, on the CPU. Raises InvalidInput when they are not finite."""
    device = next(iter(block.weights.values())).device
    there = {name: value.to(device) for name, value in sums.items()}
    scores = criterion.score(there, block, options)
    if "expert_tokens" in sums:
        scores = replace(scores, expert_tokens=sums["expert_tokens"].clone())
    held = scores.tensors()
    for name, values in held.items():
        if not bool(values.isfinite().all()):
            raise InvalidInput(f"block {block.index}: the scores of its {name} are not finite")
    return BlockScores(**held)


def _scores_of(
    checkpoint: Checkpoint, criterion: str, options: Options, blocks: Sequence[Sums]
) -> list[BlockScores]:
    """Scores of all blocks from their sums; the weights are read once."""
    chosen = load_criterion(criterion)
    scores = []
    for index, sums in enumerate(track(blocks, "score blocks")):
        block = Block.of(checkpoint, index, checkpoint.block_weights(index))
        scores.append(_block_scores(chosen, sums, block, options))
    return scores


def _named(
    scores: Sequence[BlockScores], statistics: Statistics, criterion: str, options: Options
) -> Scores:
    held = options.to_json_value()
    return Scores(statistics.tensor_digest, criterion, tuple(scores), held, options.prunes)


def _reduced(parts: Sequence[Sums]) -> Sums:
    """One block's sums from those of its parts, named ``CHUNK.NAME``."""
    chunks: ChunkSums = {}
    for part in parts:
        for name, value in part.items():
            number, _, local = name.partition(".")
            chunks.setdefault(int(number), {})[local] = value
    return reduce_chunks(chunks)
