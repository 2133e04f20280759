"""Runs as processes: they end with their watcher, and tell how they ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest

from bipline.base.errors import InvalidInput
from bipline.base.waiting import LONGEST, asked_wait, asks_to_wait
from bipline.settings.watch import LimitSettings, SourceSettings
from bipline.storage.locks import locked
from bipline.watch.launcher import Ended, Launched, ProcessLauncher, Run, last_error
from bipline.watch.machine_limits import Hindrance, MachineLimits
from bipline.watch.opening import shared_folder
from tests.watch.world import CONFIG, release, settings_of

ROOT = Path(__file__).parents[2]
RUN = Run(release(1), "config.yaml", ("model=there",), None)


def until(condition: Callable[[], object], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def wait(launched: Launched) -> Ended:
    until(lambda: launched.ended() is not None)
    ended = launched.ended()
    assert ended is not None
    return ended


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A program in Python's place, whose text a test writes: it is given Python's arguments."""
    path = tmp_path / "program"
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(path))
    yield path


def test_a_run_tells_its_error_and_how_long_to_wait(tmp_path: Path, program: Path) -> None:
    launcher = ProcessLauncher(tmp_path / "watch")
    program.write_text("#!/bin/sh\necho 'error: old'; exit 2\n")
    assert wait(launcher.start(RUN, ())) == Ended(2, "old")
    program.write_text("#!/bin/sh\necho 'error: down; it asks to wait 90 seconds' >&2; exit 3\n")
    assert wait(launcher.start(RUN, ())) == Ended(3, "down; it asks to wait 90 seconds", 90)
    program.write_text("#!/bin/sh\nexit 1\n")
    ended = wait(launcher.start(RUN, ()))
    assert ended == Ended(1, ""), "an error of an earlier start is not this one's"
    program.write_text("#!/bin/sh\nkill -9 $$\n")
    ended = wait(launcher.start(RUN, ()))
    assert ended.passing and not ended.stopped and "signal 9" in ended.reason


@pytest.mark.parametrize("name", ["m #x", "m, alias: production", "1.5", "null", "a\nb", "{x}"])
def test_a_name_that_yaml_reads_otherwise_starts_nothing(name: str) -> None:
    """Whoever names a folder must not choose the alias of what is registered."""
    values = {"folder": "models", "compress": str(CONFIG)}
    source = SourceSettings.model_validate({**values, "set": ("promote.name={name}-pruned",)})
    with pytest.raises(InvalidInput, match="cannot stand for"):
        Run.of(release(1, name=name), source)
    unnamed = SourceSettings.model_validate(values)
    assert Run.of(release(1, name=name), unnamed).overrides == (f"model={release(1).model}",)


def test_a_run_that_is_stopped_was_stopped(tmp_path: Path, program: Path) -> None:
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    launched = ProcessLauncher(tmp_path).start(RUN, ())
    assert launched.ended() is None
    launched.stop()
    assert wait(launched).stopped


def test_the_command_is_a_compress_run_of_the_release(tmp_path: Path, program: Path) -> None:
    program.write_text('#!/bin/sh\nshift 2\nprintf "%s\\n" "$@"\n')
    launcher = ProcessLauncher(tmp_path / "watch")
    launched = launcher.start(RUN, ())
    assert wait(launched) == Ended(0)
    told = Path(str(launched.log)).read_text().splitlines()[1:]
    result = str(tmp_path / "watch" / "results" / f"{RUN.name}.json")
    assert told[:2] == [str(os.getpid()), str(program)]
    assert told[2:] == [
        "-m", "bipline", "compress", "config.yaml", "--json", result, "--set", "model=there",
    ]  # fmt: skip


def test_what_an_earlier_start_left_as_its_result(tmp_path: Path) -> None:
    launcher = ProcessLauncher(tmp_path)
    assert launcher.finished(RUN) is None
    result = tmp_path / "results" / f"{RUN.name}.json"
    result.parent.mkdir()
    result.write_text(json.dumps({"registration": {"refusal": None}}))
    assert launcher.finished(RUN) == Ended(0)
    result.write_text(json.dumps({"registration": {"refusal": "too slow"}}))
    assert launcher.finished(RUN) == Ended(1, "too slow")
    launcher.forget(RUN)
    assert launcher.finished(RUN) is None


def test_a_run_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    """The watcher is killed; the run that it started is gone."""
    sleeping = tmp_path / "pid"
    program = (
        "import os, subprocess, sys\n"
        "command = [sys.executable, '-m', 'bipline.watch.bound', str(os.getpid()),\n"
        f"           '/bin/sh', '-c', 'echo $$ > {sleeping}.new; mv {sleeping}.new {sleeping};"
        " exec sleep 60']\n"
        "subprocess.run(command)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    watcher = subprocess.Popen([sys.executable, "-c", program], env=environment)
    until(sleeping.exists)
    child = int(sleeping.read_text())
    assert is_alive(child)
    watcher.send_signal(signal.SIGKILL)
    watcher.wait()
    until(lambda: not is_alive(child))


def test_a_run_whose_watcher_is_gone_already_never_begins() -> None:
    command = [sys.executable, "-m", "bipline.watch.bound", "1", "/bin/echo", "began"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 143 and not done.stdout


def is_alive(process: int) -> bool:
    try:
        status = Path(f"/proc/{process}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] not in "ZX"


def test_the_last_error_of_a_long_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("error: first\n" + "x\n" * 20_000 + "error: last\nnot this\n")
    assert last_error(log) == "last"


def limits(folder: Path, free: int = 10**12, **changes: object) -> MachineLimits:
    settings = LimitSettings.model_validate({"disk_free": "1GB", **changes})
    return MachineLimits(folder, settings, lambda folder: free)


def test_runs_at_once_are_counted_over_all_watchers(tmp_path: Path) -> None:
    one, other = limits(tmp_path, runs=2), limits(tmp_path, runs=2)
    first, second = one.take(RUN), other.take(RUN)
    assert isinstance(first, tuple) and isinstance(second, tuple)
    third = one.take(RUN)
    assert isinstance(third, Hindrance) and third.whole and "limits.runs" in third.reason
    first[0].release()
    assert isinstance(other.take(RUN), tuple)


def test_a_full_disk_starts_nothing(tmp_path: Path) -> None:
    found = limits(tmp_path, free=10**9 - 1).take(RUN)
    assert isinstance(found, Hindrance) and found.whole and "disk_free is 1.0 GB" in found.reason
    assert isinstance(limits(tmp_path, free=10**9).take(RUN), tuple)


def test_runs_of_one_state_folder_take_turns(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    run, machine = Run(release(1), "", (), state), limits(tmp_path / "watch", runs=3)
    holds = machine.take(run)
    assert isinstance(holds, tuple)
    found = machine.take(run)
    assert isinstance(found, Hindrance) and not found.whole and str(state) in found.reason
    for hold in holds:
        hold.release()
    with locked(state, "somebody's own run"):
        assert isinstance(machine.take(run), Hindrance)
    assert isinstance(machine.take(run), tuple)


def source(**changes: object) -> SourceSettings:
    values = {"registered": "dense", "compress": str(CONFIG), **changes}
    return SourceSettings.model_validate(values)


def test_a_run_is_named_and_configured_by_its_release() -> None:
    own = "evaluate={texts: [wikitext2]}"
    parts = ("promote.name={name}-pruned", "state=runs/{source}-{revision}", own)
    run = Run.of(release(7), source(set=parts))
    assert run.name.startswith("tiny-model-7-") and run.name == release(7, place="else").run
    assert run.overrides == (
        f"model={release(7).model}", "promote.name=model-7-pruned", "state=runs/tiny-000000000000",
        own,
    )  # fmt: skip
    assert run.state == Path("runs/tiny-000000000000")


def test_a_watch_of_what_its_own_runs_register_is_refused() -> None:
    with pytest.raises(InvalidInput, match="to another"):
        Run.of(release(1), source(set=("promote.name=dense",)))


def test_how_long_a_server_asks_to_wait() -> None:
    assert asked_wait(f"down{asks_to_wait({'Retry-After': '120'})}") == 120
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=300), usegmt=True)
    assert 295 <= asked_wait(asks_to_wait({"retry-after": soon})) <= 300
    assert asked_wait(asks_to_wait({"Retry-After": "9" * 30})) == LONGEST
    for text in ("", "-5", "soon", "Wed, 21 Oct 2015 07:28:00 GMT", "٣"):
        assert asks_to_wait({"Retry-After": text}) == ""
    assert asks_to_wait({}) == ""


def test_results_lie_where_other_machines_see_them(tmp_path: Path) -> None:
    """Beside a mounted journal; with one in S3, or the usual, on this machine."""
    journal = tmp_path / "mounted"
    assert shared_folder(settings_of(journal=str(journal))) == journal
    assert shared_folder(settings_of()) is shared_folder(settings_of(journal="s3://a/b")) is None
    one, other = (ProcessLauncher(tmp_path / name, journal) for name in ("one", "other"))
    assert other.finished(RUN) is None
    result = journal / "results" / f"{RUN.name}.json"
    result.parent.mkdir(parents=True)
    result.write_text('{"registration": {"refusal": null}}')
    assert one.finished(RUN) == other.finished(RUN) == Ended(0)
    assert ProcessLauncher(tmp_path / "one").finished(RUN) is None
