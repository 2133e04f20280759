"""One request has one set of keys and one model, whichever driver it comes from.

``bipline prune``, the Python API, the steps of a compress run, a row of ``compare`` and of
``sweep``: each finds in a shared Store what another made.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.command import run
from tests.pipeline.conftest import write_text
from tests.stages.drivers import LINE, Request

WAYS = [
    ("uniform", "none"), ("uniform", "least-squares"), ("per-layer", "none"), ("per-layer", "bias"),
]  # fmt: skip


def request_in(folder: Path, model: Path | str, way: tuple[str, str]) -> Request:
    for seed, name in enumerate(("calibration", "held-out"), start=1):
        write_text(folder / f"{name}.txt", seed)
    return Request(str(model), folder, *way)


def line_of(way: tuple[str, str]) -> set[str]:
    return set(LINE) - ({"compensate"} if way[1] == "none" else set())


@pytest.mark.parametrize("way", WAYS, ids="-".join)
def test_prune_compare_and_the_api_ask_for_the_same(
    llama: Path, tmp_path: Path, way: tuple[str, str], capfd: pytest.CaptureFixture[str]
) -> None:
    request, store = request_in(tmp_path, llama, way), tmp_path / "store"
    pruned = request.pruned("out", store)
    assert pruned.line.keys() == line_of(way)
    assert pruned.passes == 1
    row = request.compared("compared")
    assert row.line == pruned.line
    assert row.digests["prune"] == pruned.digests["prune"]
    # Beside its output a run that knows no tensor digest yet has keys of its own.
    alone = request.pruned("alone")
    assert alone.digests["prune"] == pruned.digests["prune"]
    outcome = run(capfd, *request.command("told", store))
    assert outcome.code == 0, outcome
    assert outcome.output.count("found in the store") == len(line_of(way))
    same = (tmp_path / name / "manifest.json" for name in ("out", "alone", "told"))
    assert len({path.read_bytes() for path in same}) == 1


@pytest.mark.slow
def test_compress_finds_what_prune_made_and_prune_what_compress_made(
    llama: Path, tmp_path: Path
) -> None:
    request = request_in(tmp_path, llama, ("per-layer", "bias"))
    first = request.pruned("out", request.store)
    found = request.compressed()
    assert found.line == first.line
    assert not set(found.made) & set(LINE)
    # The other way round, in a Store that only the steps have filled.
    shutil.rmtree(request.store)
    made = request.compressed()
    assert set(made.made) >= set(LINE)
    again = request.pruned("again", request.store)
    assert (again.made, again.line, again.passes) == ([], made.line, 0)
    assert again.digests["prune"] == first.digests["prune"]
    swept = request.swept()
    assert swept.passes == 0
    # What compress asked with the same parameters ZenML knows, and does not ask the stage again.
    assert {"calibrate": made.line["calibrate"], **swept.line} == made.line
    assert swept.keys["evaluate"] == made.keys["evaluate"]


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS, ids="-".join)
def test_every_driver_in_every_way(llama: Path, tmp_path: Path, way: tuple[str, str]) -> None:
    request = request_in(tmp_path, llama, way)
    made = request.compressed()
    assert request.swept().passes == 0
    again = request.pruned("again", request.store)
    assert (again.made, again.line) == ([], made.line)
    row = request.compared("compared")
    assert row.line == made.line
    assert row.digests["prune"] == again.digests["prune"] == made.digests["prune"]
