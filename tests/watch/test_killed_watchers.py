"""Two watchers as processes, killed by the system ten times: 50 releases, 50 runs.

The program that stands in for ``bipline compress`` writes down its start and its end, and outlives
the watcher that started it, so that it is seen whether another one starts its run again.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from bipline.settings.watch import WatchSettings
from bipline.watch.opening import open_journal, status_of
from tests.watch.world import CONFIG

ROOT = Path(__file__).parents[2]
RELEASES, KILLS = 50, 10
WATCHER = """
import sys
from pathlib import Path
from bipline.settings.watch import WatchSettings
from bipline.watch.opening import open_watcher
from bipline.watch.watcher import watch
sys.executable, settings = sys.argv[1], WatchSettings.model_validate_json(sys.argv[2])
print("up", flush=True)
watch(open_watcher(settings), once=False, every=1.0, tick=0.2, sleep=0.02)
"""
# Its arguments: those of bound (4), then compress CONFIG --json RESULT --set model=MODEL.
PROGRAM = """#!/bin/bash
result="${10}"; model="${12#model=}"
echo "start $model" >> "$RECORD"
sleep 0.$((RANDOM % 4 + 1))
echo '{"registration": {"refusal": null}}' > "$result.new"; mv "$result.new" "$result"
echo "end $model" >> "$RECORD"
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_fifty_releases_two_processes_ten_kills(llama: Path, tmp_path: Path) -> None:
    for number in range(RELEASES):
        model = Path(shutil.copytree(llama, tmp_path / "models" / f"model-{number}"))
        weights = model / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-4] + number.to_bytes(4, "little"))
    source = {
        "folder": str(tmp_path / "models"), "compress": str(CONFIG), "since": "2020-01-01",
        "settled": 0, "set": [f"state={tmp_path}/states/{{name}}"],
    }  # fmt: skip
    values = {
        "sources": {"tiny": source}, "state": str(tmp_path / "state"),
        "limits": {"runs": 3, "disk_free": 1}, "retry": {"attempts": 100},
    }  # fmt: skip
    settings = WatchSettings.model_validate_json(json.dumps(values))
    program, record = tmp_path / "program", tmp_path / "record"
    program.write_text(PROGRAM)
    program.chmod(0o755)
    record.touch()

    def start() -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", WATCHER, str(program), settings.model_dump_json()]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "RECORD": str(record)}
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)

    def ended() -> int:
        return record.read_text().count("end ")

    draw, kills = random.Random(0), 0
    watchers = [start(), start()]
    deadline = time.monotonic() + 800
    journal = open_journal(settings)

    def states() -> Counter[str]:
        return Counter(each.state for each in status_of(journal).releases)

    while states() != {"done": RELEASES}:
        assert time.monotonic() < deadline, (kills, states())
        time.sleep(0.2)
        # Kills are spread over the runs, so that each meets a watcher at work.
        if kills < KILLS and ended() >= kills * RELEASES // (KILLS + 1) + draw.randrange(3):
            index = draw.randrange(2)
            watchers[index].send_signal(signal.SIGKILL)
            watchers[index].wait()
            watchers[index] = start()
            kills += 1
    for watcher in watchers:
        watcher.kill()
        watcher.wait()
    assert kills == KILLS
    lines = Counter(record.read_text().splitlines())
    assert set(lines.values()) == {1}, "a run was started or ended twice"
    assert len(lines) == 2 * RELEASES
