"""Scoring for many: statistics once per model, calibration set and criterion.

Criteria that can share sums are scored together. The one that reads the most goes first, and
another whose needs its sums meet is scored from them, without a pass of its own. What comes out
is what a pass of its own would have given.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bipline.base.errors import InvalidInput
from bipline.base.progress import note
from bipline.comparison.meter import metered
from bipline.compression.computing import Computing
from bipline.compression.criteria import (
    FORWARD,
    Criterion,
    load_criterion,
    options_of,
    unmet_needs,
)
from bipline.compression.criteria.interface import Options
from bipline.compression.gradient_sums import check_windows
from bipline.compression.score import Calibration, compute_scores, score_model
from bipline.compression.statistics import (
    KIND,
    Scores,
    Statistics,
    load_statistics,
    save_statistics,
)
from bipline.model.checkpoint import Checkpoint
from bipline.storage.directory import DirectoryWriter, write_text
from bipline.storage.store import LocalStore
from bipline.storage.work import work_directory
from bipline.values.combination import Choice
from bipline.values.comparison import Cost

STAGE = "score"
COST_NAME = "cost.json"


@dataclass(frozen=True)
class Wanted:
    """A criterion to score with, by its stage key; not ``needed`` where it could only share."""

    criterion: Choice
    seed: int
    key: str
    needed: bool = True

    @property
    def options(self) -> Options:
        """The criterion's options."""
        return options_of(self.criterion.name, self.seed, self.criterion.options)

    @property
    def module(self) -> Criterion:
        """The criterion itself."""
        return load_criterion(self.criterion.name)

    @property
    def breadth(self) -> int:
        """How many sums it reads: the more, the more others may find in them."""
        if self.module.NEEDS == "search":
            return 0
        return len(self.module.reads(self.options))


@dataclass(frozen=True)
class Taken:
    """What scoring gave, and what it cost."""

    statistics: Statistics
    scores: Scores
    cost: Cost

    def save(self, writer: DirectoryWriter) -> None:
        """Write it: statistics as anywhere else, and the cost beside them."""
        save_statistics(self.statistics, self.scores, writer)
        text = json.dumps(self.cost.model_dump(mode="json"), indent=1, sort_keys=True)
        write_text(writer.path / COST_NAME, text + "\n")


def families(wanted: Sequence[Wanted]) -> list[list[Wanted]]:
    """Those that may share sums, together, and each search alone; the broadest first."""
    found: dict[str, list[Wanted]] = {}
    for each in sorted(wanted, key=lambda one: -one.breadth):
        needs = each.module.NEEDS
        found.setdefault(_family(needs, each.key), []).append(each)
    return [family for family in found.values() if any(each.needed for each in family)]


def score_family(
    checkpoint: Checkpoint,
    calibration: Calibration,
    family: Sequence[Wanted],
    computing: Computing,
    store: LocalStore,
) -> dict[str, str]:
    """Have the statistics of every needed member in the store; the reasons of those refused.

    Reasons are by stage key. A pass that was killed goes on after its last finished block.
    """
    held: list[tuple[Choice, Statistics]] = []
    refusals = {}
    for wanted in family:
        found = store.find(STAGE, wanted.key)
        if found is None and not wanted.needed:
            continue
        try:
            place = store.place(STAGE, wanted.key)
            if found is None:
                with work_directory(place.with_name(f"{place.name}.work")) as work:
                    taken = take(checkpoint, calibration, wanted, computing, work, held)
                    # Inside, because the work directory goes when what it was for is stored.
                    with store.write(STAGE, wanted.key, KIND) as writer:
                        taken.save(writer)
            held.append((wanted.criterion, load_statistics(place)[0]))
        except InvalidInput as refusal:
            refusals[wanted.key] = str(refusal)
    return refusals


def cost_of(statistics: Path) -> Cost:
    """What the statistics in a directory cost."""
    return Cost.model_validate_json((statistics / COST_NAME).read_text(encoding="utf-8"))


def _family(needs: str, key: str) -> str:
    if needs in FORWARD:
        return "forward"
    return key if needs == "search" else needs


def take(
    checkpoint: Checkpoint,
    calibration: Calibration,
    wanted: Wanted,
    computing: Computing,
    work: Path,
    held: Sequence[tuple[Choice, Statistics]] = (),
) -> Taken:
    """Statistics and scores of one criterion, from sums that are ``held`` where they suffice.

    Raises InvalidInput as :func:`bipline.compression.score.score_model` does.
    """
    name, options = wanted.criterion.name, wanted.options
    # Whoever ran the pass: too few windows are too few.
    check_windows(name, options, len(calibration.token_ids))
    provider = _provider(wanted, held)
    with metered() as meter, meter.stage(STAGE):
        if provider is None:
            statistics, scores = score_model(
                checkpoint, calibration, name, options, computing, work
            )
        else:
            statistics = provider[1]
            note(f"{name}: its sums come from the pass of {provider[0].label}")
            scores = compute_scores(checkpoint, statistics, name, options)
    return Taken(statistics, scores, meter.cost(provider and provider[0].label))


def _provider(
    wanted: Wanted, held: Sequence[tuple[Choice, Statistics]]
) -> tuple[Choice, Statistics] | None:
    """The first statistics whose sums meet what the criterion needs in every block."""
    if wanted.module.NEEDS in ("weights", "search"):
        return None
    for provider, statistics in held:
        if not any(unmet_needs(wanted.module, wanted.options, sums) for sums in statistics.blocks):
            return provider, statistics
    return None
