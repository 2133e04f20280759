"""Paths that a user names: what would cost a file is refused before any work, by each command."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.command import contents, run
from tests.compression.test_calibrate import prose

COMMANDS = {
    "prune": [
        "prune", "model", "--ratio", "0.3", "--criterion", "llm-bip-glu", "--samples", "4",
        "--seqlen", "16", "--calibration", "text.txt", "--out", "out", "--state", "state",
    ],
    "evaluate": [
        "evaluate", "model", "--text", "t=text.txt", "--seqlen", "16", "--state", "state",
    ],
    "compare": [
        "compare", "model", "--criteria", "magnitude", "--ratios", "0.3", "--samples", "4",
        "--seqlen", "16", "--calibration", "text.txt", "--text", "t=other.txt",
        "--evaluation-seqlen", "16", "--out", "out", "--state", "state",
    ],
    "compress": ["compress", "compress.yaml", "--dry-run"],
    "sweep": ["sweep", "sweep.yaml", "--dry-run"],
}  # fmt: skip
CONFIGURATION = """model: model
texts: {calibration: text.txt, held-out: other.txt}
state: state
calibrate: {samples: 4, seqlen: 16}
evaluate: {protocol: {seqlen: 16}}
"""


@pytest.fixture
def here(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder where every command works."""
    shutil.copytree(llama, tmp_path / "model")
    (tmp_path / "text.txt").write_text(prose(1))
    (tmp_path / "other.txt").write_text(prose(2))
    line = "allocate: {ratio: 0.3}\nscore: {criterion: magnitude}\n"
    (tmp_path / "compress.yaml").write_text(CONFIGURATION + line)
    (tmp_path / "sweep.yaml").write_text(CONFIGURATION + "grid: {criteria: [magnitude]}\n")
    (tmp_path / "notes.json").write_text('{"mine": 1}')
    (tmp_path / "link.json").symlink_to("notes.json")
    monkeypatch.chdir(tmp_path)
    return tmp_path


EVERY = ["prune", "evaluate", "compare", "compress", "sweep"]
REFUSED = [
    (EVERY, ["--json", "model/model.safetensors"], "--json"),
    (EVERY, ["--json", "model/new.json"], "lies in"),
    (EVERY, ["--json", "text.txt"], "same place"),
    (EVERY, ["--json", "notes.json"], "no earlier result"),
    (EVERY, ["--json", "link.json"], "is a link"),
    (EVERY, ["--json", "/dev/null"], "no plain file"),
    (EVERY, ["--json", "model"], "same place"),
    (EVERY, ["--json", "nowhere/x.json"], "folder does not exist"),
    (EVERY, ["--json", "state"], "holds"),
    (["prune"], ["--work", "w", "--out", "w/pruned"], "lies in --work"),
    (["prune"], ["--work", "model"], "same place"),
    (["prune"], ["--work", "."], "lies in --work"),
    (["prune"], ["--work", "w", "--statistics", "w/sums"], "lies in --work"),
    (["prune"], ["--work", "w", "--corrections", "w/c"], "lies in --work"),
    (["prune", "compare"], ["--out", "model"], "same place"),
    (["prune", "compare"], ["--out", "model/out"], "lies in"),
    (["prune"], ["--out", "."], "write --out"),
    (["prune"], ["--plan-out", "notes.json"], "no earlier result"),
    (["prune"], ["--plan-out", "a.json", "--json", "a.json"], "same place"),
    (["prune"], ["--store", "s", "--out", "s/out"], "lies in --store"),
    (["compare"], ["--csv", "notes.json"], "no earlier result"),
    (["compare"], ["--html", "text.txt"], "same place"),
    (["compare"], ["--csv", "a", "--html", "a"], "same place"),
    (["compare"], ["--out", "."], "holds --state"),
    (["prune", "evaluate", "compare"], ["--state", "notes.json"], "no folder"),
    (["prune", "evaluate", "compare"], ["--state", "model"], "a model's folder"),
    (["compress", "sweep"], ["--set", "state=/dev/null"], "state"),
    (["compress", "sweep"], ["--set", "state=model"], "state"),
    (["compress", "sweep"], ["--set", "state=''"], "give a path"),
    (["compress", "sweep"], ["--set", "model=''"], "give a path"),
    (["compress", "sweep"], ["--set", "state=hf:x"], "begins an address"),
    (["compress", "sweep"], ["--set", "state='a#b'"], "parts of an address"),
    (["compress", "sweep"], ["--set", "state='a?b/c'"], "parts of an address"),
    (["evaluate"], ["--baseline", ""], "give a path"),
    (["prune", "compare"], ["--out", "s3://bucket/x"], "begins an address"),
    (["prune"], ["--store", "file:///x"], "begins an address"),
    (["prune", "evaluate", "compare"], ["--state", "hf:x"], "begins an address"),
    (["compare"], ["--out", "notes.json"], "not a directory"),
    (["evaluate"], ["--tasks", "../text", "--task-data", "."], "the name of a file"),
    (["evaluate", "compare"], ["--text", "\x1b[31mred=text.txt"], "'\\x1b[31mred'"),
    (["evaluate", "compare"], ["--text", "a\nb=text.txt"], "that can be shown"),
    (["evaluate", "compare"], ["--text", "\udcff=text.txt"], "that can be shown"),
    (["evaluate", "compare"], ["--text", " =text.txt"], "that can be shown"),
    (["evaluate"], ["--text", "n" * 300 + "=text.txt"], "1 to 100"),
    (["compare"], ["--seeds", ",".join(map(str, range(20_000)))], "20,000 combinations"),
]


@pytest.mark.parametrize(
    ("command", "more", "words"),
    [(command, more, words) for commands, more, words in REFUSED for command in commands],
)
def test_places_are_refused_before_any_work(
    capfd: pytest.CaptureFixture[str], here: Path, command: str, more: list[str], words: str
) -> None:
    before = contents(here)
    run(capfd, *COMMANDS[command], *more).assert_one_line(2, words)
    after = {name: data for name, data in contents(here).items() if "/logs/" not in name}
    assert after == before


def test_what_stands_under_a_temporary_name_costs_nobody_anything(
    capfd: pytest.CaptureFixture[str], here: Path
) -> None:
    """A link to a file or to a folder, planted where a result is about to be written."""
    victim = here / "victim"
    victim.mkdir()
    (victim / "kept.txt").write_text("kept")
    (here / ".result.json.partial").symlink_to(victim / "kept.txt")
    assert run(capfd, *COMMANDS["prune"], "--json", "result.json").code == 0
    (here / ".again.partial").symlink_to(victim)
    run(capfd, *COMMANDS["prune"], "--out", "again").assert_one_line(2, ".again.partial", "link")
    assert contents(victim) == {"kept.txt": b"kept"}
    assert not (here / "result.json").is_symlink()


def test_an_earlier_result_is_written_again(capfd: pytest.CaptureFixture[str], here: Path) -> None:
    """By the command that wrote it, and by no other."""
    for _ in range(2):
        assert run(capfd, *COMMANDS["evaluate"], "--json", "result.json").code == 0
    assert json.loads((here / "result.json").read_text())["command"] == "evaluate"
    run(capfd, *COMMANDS["prune"], "--json", "result.json").assert_one_line(2, "no earlier result")
    files = ["--json", "c.json", "--csv", "c.csv", "--html", "c.html"]
    for _ in range(2):
        assert run(capfd, *COMMANDS["compare"], *files).code == 0
    swapped = ["--json", "c.csv", "--csv", "c.html", "--html", "c.json"]
    assert run(capfd, *COMMANDS["compare"], *swapped).code == 0
    for number in range(2):
        arguments = [*COMMANDS["prune"], "--plan-out", "plan.json", "--out", f"o{number}"]
        assert run(capfd, *arguments).code == 0
