"""Whatever a file holds: one line and an exit code, in time, and nothing written elsewhere.

The seed is hypothesis's own; what it finds it keeps below ``.hypothesis`` and tries first.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.command import contents, run
from tests.compression.test_calibrate import prose
from tests.faults.mutations import changed_json, damaged

LONGEST_SECONDS = 20
FUZZED = settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
PRUNE = ["--ratio", "0.3", "--criterion", "llm-bip-glu", "--samples", "4", "--seqlen", "16",
         "--calibration", "text.txt", "--out", "out", "--state", "state"]  # fmt: skip
CONFIGURATION = """model: model
texts: {calibration: text.txt, held-out: text.txt}
state: state
calibrate: {texts: {calibration: 1.0}, samples: 4, seqlen: 16}
score: {criterion: llm-bip-glu}
allocate: {ratio: 0.3}
evaluate: {texts: [held-out], protocol: {seqlen: 16}}
"""
ROWS = [
    {"query": f"the cat {number} sat", "choices": ["here.", "there."], "gold": number % 2}
    for number in range(4)
]


@dataclass(frozen=True)
class Target:
    """A file that is changed, and the command that reads it."""

    file: str
    command: list[str]
    is_json: bool = True
    # Whether whoever changed the file wrote its digest into the manifest beside it too.
    relisted: bool = False


TARGETS = {
    "config.json": Target("model/config.json", ["prune", "model", *PRUNE]),
    "config.json, measured": Target(
        "model/config.json", ["evaluate", "model", "--text", "t=text.txt", "--seqlen", "16"]
    ),
    "generation_config.json": Target("model/generation_config.json", ["prune", "model", *PRUNE]),
    "tokenizer.json": Target("model/tokenizer.json", ["prune", "model", *PRUNE]),
    "tokenizer_config.json": Target("model/tokenizer_config.json", ["prune", "model", *PRUNE]),
    "weights": Target("model/model.safetensors", ["prune", "model", *PRUNE], is_json=False),
    "text": Target("text.txt", ["prune", "model", *PRUNE], is_json=False),
    "jsonl": Target(
        "text.jsonl", ["evaluate", "model", "--text", "t=text.jsonl", "--seqlen", "16"], False
    ),
    "task rows": Target(
        "tasks/t.jsonl", ["evaluate", "model", "--tasks", "t", "--task-data", "tasks"], False
    ),
    "plan": Target(
        "plan.json", ["prune", "model", "--plan", "plan.json", "--out", "out", "--state", "state"]
    ),
    "statistics": Target(
        "sums/statistics.json", ["prune", "model", "--statistics", "sums", *PRUNE], relisted=True
    ),
    "scores": Target(
        "sums/scores.safetensors",
        ["prune", "model", "--statistics", "sums", *PRUNE],
        is_json=False,
        relisted=True,
    ),
    "a pruned model's config": Target(
        "pruned/config.json", ["prune", "pruned", *PRUNE], relisted=True
    ),
    "statistics' manifest": Target(
        "sums/manifest.json", ["prune", "model", "--statistics", "sums", *PRUNE]
    ),
    "manifest": Target("pruned/manifest.json", ["verify", "pruned"]),
    "manifest, measured": Target(
        "pruned/manifest.json", ["evaluate", "pruned", "--text", "t=text.txt", "--seqlen", "16"]
    ),
    "configuration": Target(
        "compress.yaml", ["compress", "compress.yaml", "--dry-run"], is_json=False
    ),
}


@pytest.fixture(scope="module")
def good(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which every command works: model, texts, rows, a plan, statistics."""
    import bipline

    root = tmp_path_factory.mktemp("good")
    shutil.copytree(llama, root / "model")
    (root / "text.txt").write_text(prose(1))
    lines = prose(1).splitlines()
    (root / "text.jsonl").write_text("".join(json.dumps({"text": x}) + "\n" for x in lines[:40]))
    (root / "tasks").mkdir()
    (root / "tasks/t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (root / "compress.yaml").write_text(CONFIGURATION)
    bipline.prune(
        root / "model", root / "pruned", calibration=root / "text.txt", ratio=0.3, samples=4,
        seqlen=16, criterion="llm-bip-glu", statistics=str(root / "sums"),
        plan_out=root / "plan.json", state=root / "state",
    )  # fmt: skip
    shutil.rmtree(root / "state", ignore_errors=True)
    return root


@contextmanager
def in_time(seconds: int) -> Iterator[None]:
    """Fail where the block takes longer."""

    def late(*_: Any) -> None:
        raise AssertionError(f"no answer in {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def relist(file: Path) -> None:
    """Write the file as it is now into the manifest beside it."""
    manifest = file.with_name("manifest.json")
    value = json.loads(manifest.read_text())
    data = file.read_bytes()
    value["files"][file.name] |= {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    manifest.write_text(json.dumps(value))


def assert_it_ends_well(
    capfd: pytest.CaptureFixture[str], good: Path, work: Path, target: Target, changed: bytes
) -> None:
    """One line and a code of the table, and nothing but OUT and the state was written."""
    shutil.copytree(good, work)
    (work / target.file).write_bytes(changed)
    if target.relisted:
        relist(work / target.file)
    before = contents(work)
    with pytest.MonkeyPatch.context() as patch, in_time(LONGEST_SECONDS):
        patch.chdir(work)
        outcome = run(capfd, *target.command)
    assert outcome.code in (0, 1, 2, 3), outcome
    if outcome.code:
        outcome.assert_one_line(outcome.code)
        assert "fault of bipline" not in outcome.errors, outcome
    written = ("out/", "out.work/", "state/", ".bipline/")
    after = {name: data for name, data in contents(work).items() if not name.startswith(written)}
    assert after == before
    shutil.rmtree(work)


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_whatever_a_file_holds_a_command_ends_well(
    name: str, good: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    target = TARGETS[name]
    original = (good / target.file).read_bytes()
    kinds: list[Callable[[bytes], st.SearchStrategy[bytes]]] = [damaged]
    if target.is_json:
        kinds.append(changed_json)
    numbers = itertools.count()

    @FUZZED
    @given(st.one_of(*(kind(original) for kind in kinds)))
    def check(changed: bytes) -> None:
        assert_it_ends_well(capfd, good, tmp_path / str(next(numbers)), target, changed)

    check()
