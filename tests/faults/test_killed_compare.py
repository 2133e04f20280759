"""``bipline compare`` killed by SIGKILL, in every kind of write and with workers: the same rows."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.comparing import Bench, figures
from tests.faults.test_killed_prune import Runs
from tests.tiny import tiny_model

MOMENTS = 8


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    server = Runs(tmp_path_factory.mktemp("runs"))
    yield server
    server.close()


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench.of(tiny_model(tmp_path / "model", "llama-gqa"), tmp_path)


def command(bench: Bench, out: str, **changed: object) -> list[str]:
    """Statistics of two families, a refused row, and models that are kept."""
    axes = {"criteria": "wanda-sp,llm-bip,hywia", "ratios": "0.3,0.98", **changed}
    given = bench.arguments(out, **axes)
    return [*given, "--keep"]


def rows(bench: Bench, out: str) -> list[dict[str, Any]]:
    value: dict[str, Any] = json.loads((bench.folder / out / "comparison.json").read_text())
    return figures(value)


def moments(events: list[str]) -> list[int]:
    """Moments of as many kinds as there is time for, the kinds of this command's own first."""
    draw = random.Random(20)
    own = [n for n, event in enumerate(events) if "value.json" in event or "cost.json" in event]
    kinds: dict[str, list[int]] = {}
    for number, event in enumerate(events):
        kinds.setdefault(event, []).append(number)
    rest = [draw.choice(numbers) for numbers in kinds.values()]
    chosen = dict.fromkeys([*draw.sample(own, 4), *draw.sample(rest, len(rest))])
    return sorted(list(chosen)[:MOMENTS])


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_anywhere_and_run_again(runs: Runs, bench: Bench) -> None:
    assert runs.run(command(bench, "whole")) == 0, runs.screen
    events, expected = runs.events, rows(bench, "whole")
    assert len(expected) == 6
    for number in moments(events):
        out = f"killed-{number}"
        assert runs.run(command(bench, out), number) == -9, events[number]
        assert runs.run(command(bench, out)) == 0, (events[number], runs.screen)
        assert rows(bench, out) == expected, events[number]
        left = [path.name for path in (bench.folder / out).rglob("*")]
        assert not [name for name in left if name.endswith((".partial", ".work"))], events[number]
        assert len(list((bench.folder / out / "models").iterdir())) == 3, events[number]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_again_and_again(runs: Runs, bench: Bench) -> None:
    """A run that is killed in its fortieth event each time comes to its end all the same."""
    assert runs.run(command(bench, "whole")) == 0
    codes = []
    while not codes or codes[-1] != 0:
        codes.append(runs.run(command(bench, "killed"), 40))
        assert codes[-1] in (0, -9), runs.screen
        assert len(codes) < 20
    assert len(codes) > 2
    assert rows(bench, "killed") == rows(bench, "whole")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_while_it_compensates(runs: Runs, bench: Bench) -> None:
    axes: dict[str, Any] = {"criteria": None, "method": "wanda-sp//obs", "ratios": "0.3"}
    assert runs.run(command(bench, "whole", **axes)) == 0, runs.screen
    events, expected = runs.events, rows(bench, "whole")
    assert expected[0]["measured"]["compensated"]
    own = [event for event in dict.fromkeys(events) if "block-" in event or "correct" in event]
    for event in own:
        # Scoring writes files of these names too: the last are those of corrections.
        number = len(events) - 1 - events[::-1].index(event)
        out = f"killed-{number}"
        assert runs.run(command(bench, out, **axes), number) == -9, event
        assert runs.run(command(bench, out, **axes)) == 0, (event, runs.screen)
        assert rows(bench, out) == expected, event
        left = [path.name for path in (bench.folder / out).rglob("*")]
        assert not [name for name in left if name.endswith((".partial", ".work"))], event
        assert len(list((bench.folder / out / "models").iterdir())) == 2, event


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_with_workers(bench: Bench) -> None:
    """The workers end with the process that started them, and a rerun goes on."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    program = [sys.executable, "-m", "bipline"]
    axes = {"criteria": "wanda-sp,llm-bip", "ratios": "0.2,0.3", "seeds": "0,1"}
    given = command(bench, "killed", jobs=2, **axes)
    process = subprocess.Popen(
        [*program, *given], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip().startswith("row 2 of"):
            break
    tasks = Path(f"/proc/{process.pid}/task")
    children = [int(c) for path in tasks.glob("*/children") for c in path.read_text().split()]
    assert children
    process.send_signal(signal.SIGKILL)
    process.communicate()
    for _ in range(100):
        if not any(running(child) for child in children):
            break
        time.sleep(0.1)
    assert not any(running(child) for child in children)
    for out, jobs in (("killed", 2), ("whole", 1)):
        given = command(bench, out, jobs=jobs, **axes)
        subprocess.run([*program, *given], check=True, env=environment, stdout=subprocess.DEVNULL)
    assert rows(bench, "killed") == rows(bench, "whole")


def running(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"
