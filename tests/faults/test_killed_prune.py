"""Killed by SIGKILL inside every kind of write and rename, and run again: the same bytes."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.command import contents
from tests.compression.test_calibrate import prose
from tests.faults.killing import NEVER
from tests.tiny import tiny_model

ROOT = Path(__file__).parents[2]
# What the runs write, each with a name of its own, digits replaced by N.
KINDS = {
    "write .calibration.json.partial", "replace calibration.json",
    "write .fitted_text.json.partial", "replace fitted_text.json",
    "write .value.json.partial", "replace value.json", "rename N",
    "write .N.cost.json.partial", "replace N.cost.json",
    "write .N.journal.json.partial", "replace N.journal.json",
    "write .key.json.partial", "replace key.json",
    "write states-N.partial", "replace states-N.bin",
    "save block-N.partial", "replace block-N.safetensors",
    "write .block-N.json.partial", "replace block-N.json",
    "save sums.safetensors", "save scores.safetensors",
    "write .statistics.json.partial", "replace statistics.json", "rename statistics",
    "flush model-N-of-N.safetensors",
    "write .model.safetensors.index.json.partial", "replace model.safetensors.index.json",
    "write .config.json.partial", "replace config.json",
    "write .pruning_plan.json.partial", "replace pruning_plan.json",
    "write .README.md.partial", "replace README.md",
    "write generation_config.json", "write tokenizer.json", "write tokenizer_config.json",
    "write .manifest.json.partial", "replace manifest.json", "rename corrections", "rename out",
}  # fmt: skip
WRITTEN = ("out", "statistics", "corrections")


class Runs:
    """Commands that are killed in a chosen event, and the events that happened."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "events"
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.killing"], cwd=ROOT, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def run(self, arguments: list[str], fatal: int = NEVER, after: bool = False) -> int:
        request = {
            "arguments": arguments, "fatal": fatal, "after": after, "log_path": str(self.log),
        }  # fmt: skip
        assert self._server.stdin is not None and self._server.stdout is not None
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        return int(json.loads(self._server.stdout.readline()))

    @property
    def events(self) -> list[str]:
        return self.log.read_text().splitlines()

    @property
    def screen(self) -> str:
        return Path(f"{self.log}.screen").read_text()

    def close(self) -> None:
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait(timeout=30)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    server = Runs(tmp_path_factory.mktemp("runs"))
    yield server
    server.close()


def arguments(model: Path, folder: Path, **changed: object) -> list[str]:
    """``bipline prune`` of a model in several shards, with everything it can write."""
    options: dict[str, object] = {
        "ratio": 0.3, "calibration": model.parent / "text.txt", "samples": 40, "seqlen": 16,
        "criterion": "llm-bip-glu", "compensation": "obs", "shard-size": 30_000,
        "out": folder / "out", "statistics": folder / "statistics",
        "corrections": folder / "corrections",
        "state": model.parent / "state", **changed,
    }  # fmt: skip
    flags = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
    return ["prune", str(model), *flags]


def moments(events: list[str]) -> list[int]:
    """One event of every kind, and every rename that ends a stage, drawn by seed."""
    draw = random.Random(20)
    stage, by_kind = 0, dict[tuple[int, str], list[int]]()
    for number, event in enumerate(events):
        ends = event.startswith("rename")
        by_kind.setdefault((stage if ends else 0, event), []).append(number)
        stage += ends
    assert stage == 5
    return sorted(draw.choice(numbers) for numbers in by_kind.values())


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_text(prose(1) * 2)
    return tiny_model(tmp_path / "model", "llama-gqa")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_anywhere_and_run_again(runs: Runs, model: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    assert runs.run(arguments(model, whole)) == 0, runs.screen
    events, expected = runs.events, contents(whole)
    assert set(events) == KINDS
    draw = random.Random(21)
    for number in moments(events):
        # A rename has no middle: before it, or after.
        after = events[number].split()[0] in ("replace", "rename") and draw.random() < 0.5
        folder = tmp_path / f"killed-{number}-{after}"
        assert runs.run(arguments(model, folder), number, after) == -9, events[number]
        assert (folder / "out").exists() == (after and events[number] == "rename out")
        assert runs.run(arguments(model, folder)) == 0, (events[number], runs.screen)
        assert contents(folder) == expected, events[number]
        assert {path.name for path in folder.iterdir()} == set(WRITTEN), events[number]


@pytest.mark.slow
def test_killed_twice_in_one_job(runs: Runs, model: Path, tmp_path: Path) -> None:
    """Going on from what a run that itself went on had left."""
    assert runs.run(arguments(model, tmp_path / "whole")) == 0
    events = runs.events
    first = events.index("replace block-N.json")
    folder = tmp_path / "killed"
    assert runs.run(arguments(model, folder), first + 1) == -9
    assert runs.run(arguments(model, folder), runs_to(events, "flush model", 2)) == -9
    assert runs.run(arguments(model, folder)) == 0
    assert contents(folder) == contents(tmp_path / "whole")


def runs_to(events: list[str], beginning: str, which: int) -> int:
    """The number of the ``which``-th event of a kind, less those a resumed run leaves out."""
    before = [n for n, event in enumerate(events) if event.startswith(beginning)][which]
    skipped = events.index("replace block-N.json") + 1
    return before - skipped


@pytest.mark.parametrize(
    "changed",
    [
        {"samples": 41}, {"ratio": 0.4},
        *(
            pytest.param(changed, marks=pytest.mark.slow)
            for changed in (
                {"seqlen": 15}, {"seed": 1}, {"criterion": "llm-bip"}, {"dtype": "bfloat16"},
                {"micro-batch": 4},
            )
        ),
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.slow
def test_other_settings_take_nothing_from_a_killed_run(
    runs: Runs, model: Path, tmp_path: Path, changed: dict[str, object]
) -> None:
    """What lies in OUT.work is found by equal inputs alone: others give what they always give."""
    assert runs.run(arguments(model, tmp_path / "fresh", **changed)) == 0
    assert runs.run(arguments(model, tmp_path / "whole")) == 0
    in_pruning = [n for n, event in enumerate(runs.events) if event.startswith("flush model")][1]
    folder = tmp_path / "killed"
    aside = {"statistics": folder / "other-s", "corrections": folder / "other-c"}
    assert runs.run(arguments(model, folder, **aside), in_pruning) == -9
    assert runs.run(arguments(model, folder, **changed)) == 0, runs.screen
    for name in WRITTEN:
        assert contents(folder / name) == contents(tmp_path / "fresh" / name), name


@pytest.mark.slow
def test_a_slip_of_the_pen_costs_nothing_that_is_finished(
    runs: Runs, model: Path, tmp_path: Path
) -> None:
    assert runs.run(arguments(model, tmp_path / "whole")) == 0
    after_first_block = runs.events.index("replace block-N.json") + 1
    folder = tmp_path / "killed"
    assert runs.run(arguments(model, folder), after_first_block) == -9
    before = contents(folder)
    for slip in ({"calibration": "gone.txt"}, {"ratio": 7}, {"criterion": "best"}):
        assert runs.run(arguments(model, folder, **slip)) == 2
        assert contents(folder) == before
    assert runs.run(arguments(model, folder)) == 0, runs.screen
    assert "going on after block 1 of 2" in runs.screen
